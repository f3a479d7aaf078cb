"""From tables to figures; no model is loaded.

style   colours, line styles, frames, files
layers  one probe
lenses  the held-out loss of a fitted lens
tuning  what tuning changes
"""
