"""From tables to figures; no model is loaded.

looks     colours, dashes and signs of languages, which of them are shown
style     lines, frames, files
layers    one probe
grids     one prompt at all of its positions
lenses    the held-out loss of a fitted lens
tuning    what tuning changes
neurons   language_neurons.py's tables
ablation  ablate_language.py's tables
page      one probe, or two with their difference, as a page for a browser
"""
