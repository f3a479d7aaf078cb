"""From tables to figures; no model is loaded.

style     colours, line styles, frames, files
layers    one probe
grids     one prompt at all of its positions
lenses    the held-out loss of a fitted lens
tuning    what tuning changes
neurons   language_neurons.py's tables
ablation  ablate_language.py's tables
page      one probe, or two with their difference, as a page for a browser
"""
