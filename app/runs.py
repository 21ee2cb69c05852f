"""Being built."""

from __future__ import annotations

import gradio as gr

from app.desk import Desk


def page(desk: Desk) -> None:
    gr.Markdown("# Runs")
