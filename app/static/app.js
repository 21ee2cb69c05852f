// Shared by all pages. No framework: a few listeners on the document, so that they survive Gradio's re-rendering.
"use strict";
