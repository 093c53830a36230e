"""How the page looks: system fonts only, nothing from other machines."""

from __future__ import annotations

import gradio as gr

_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
_MONO = ("ui-monospace", "Menlo", "Consolas", "monospace")


def theme() -> gr.themes.Base:
    """Colours, fonts and corners."""
    return gr.themes.Default(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.stone,
        radius_size=gr.themes.sizes.radius_md,
        font=_FONTS,
        font_mono=_MONO,
    )


STYLE = """
.gradio-container { max-width: 1240px !important; width: 100%; margin: 0 auto; }
.gradio-container > main { width: 100%; }
.mq-head h1 { margin: 0; font-size: 1.5rem; font-weight: 650; letter-spacing: -0.01em; }
.mq-head p { margin: 0.15rem 0 0; color: var(--body-text-color-subdued); }
.mq-progress { padding: 0.25rem 0; }
.mq-line { display: flex; justify-content: space-between; gap: 1rem; font-variant-numeric: tabular-nums; }
.mq-track { height: 8px; margin-top: 0.4rem; border-radius: 4px; overflow: hidden;
  background: var(--border-color-primary); }
.mq-fill { height: 100%; background: var(--primary-500); transition: width 0.25s linear; }
.mq-note { padding: 0.6rem 0.8rem; border-radius: 8px; border: 1px solid var(--border-color-primary);
  background: var(--background-fill-secondary); overflow-wrap: anywhere; }
.mq-error { border-color: #dc2626; background: #fef2f2; color: #991b1b; }
.dark .mq-error { background: #450a0a; color: #fecaca; }
.mq-empty { display: grid; place-items: center; min-height: 22rem; padding: 1rem; text-align: center;
  border-radius: 10px; border: 1px dashed var(--border-color-primary); color: var(--body-text-color-subdued); }
.mq-report p { margin: 0; font-variant-numeric: tabular-nums; }
.mq-report .mq-warnings { margin: 0.4rem 0 0; padding-left: 1.2rem; color: #b45309; }
.dark .mq-report .mq-warnings { color: #fbbf24; }
.mq-report details { margin-top: 0.4rem; }
.mq-report summary { cursor: pointer; color: var(--body-text-color-subdued); }
.mq-report table { margin-top: 0.3rem; border-collapse: collapse; font-size: 0.9rem; }
.mq-report td { padding: 0.1rem 1rem 0.1rem 0; border: 0; }
.mq-report td:last-child { text-align: right; font-variant-numeric: tabular-nums; }
.mq-downloads { display: flex; flex-wrap: wrap; gap: 0.5rem; }
a.mq-download { flex: 1 1 8.5rem; display: flex; flex-direction: column; padding: 0.5rem 0.8rem; border-radius: 8px;
  border: 1px solid var(--border-color-primary); background: var(--background-fill-secondary);
  color: var(--body-text-color); text-decoration: none; }
a.mq-download:hover, a.mq-download:focus-visible { border-color: var(--primary-500); }
a.mq-download span { color: var(--body-text-color-subdued); font-size: 0.85rem; }
.mq-viewer { display: block; width: 100%; height: min(70vh, 30rem); border: 0; border-radius: 10px;
  background: var(--background-fill-secondary); }
.mq-sheet img, .mq-video { display: block; width: 100%; max-height: 34rem; object-fit: contain; border-radius: 8px;
  background: #fff; }
#mq-painting { max-width: 36rem; margin: 0 auto; }
#mq-gallery .grid-wrap, #mq-gallery .grid-container { min-height: 0 !important; height: auto !important; }
@media (max-width: 640px) {
  .gradio-container { padding: 0.5rem !important; }
  .mq-viewer { height: 22rem; }
  .mq-empty { min-height: 8rem; }
  .tab-container button { padding: 0 0.55rem !important; }
  #mq-painting { height: 25rem !important; }
}
"""
