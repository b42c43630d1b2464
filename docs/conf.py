"""The documentation site: Markdown by MyST, theme Furo. Built by `make docs`."""

project = "handfast"
author = "the handfast authors"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "handfast"
myst_heading_anchors = 3
exclude_patterns = ["site", "benchmarks"]
