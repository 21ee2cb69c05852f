// Shared by all pages. No framework: a few listeners on the document, so that they survive Gradio's re-rendering.
"use strict";

// Errors page: a button carries a value for a hidden field (`data-set`, `data-value`); the field's own event does the rest.
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-set]");
  const field = button && document.querySelector(`#${CSS.escape(button.dataset.set)} :is(textarea, input)`);
  if (!field) return;
  if (button.dataset.set === "errors-cell" && !("close" in button.dataset)) window.errorsOpener = button.dataset.value;
  document.querySelectorAll(`[data-set="${CSS.escape(button.dataset.set)}"][aria-current]`).forEach((one) => one.removeAttribute("aria-current"));
  if (!("close" in button.dataset)) button.setAttribute("aria-current", "true");
  field.value = button.dataset.value;
  field.dispatchEvent(new Event("input", { bubbles: true }));
  if ("close" in button.dataset) document.querySelector(`.errors [data-value="${CSS.escape(window.errorsOpener || "")}"]`)?.focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") document.querySelector("#errors-drawer [data-close]")?.click();
});
