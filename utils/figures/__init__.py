"""From tables to figures; no model is loaded.

style    colours, line styles, frames, files
layers   one probe
tuning   what tuning changes
neurons  language_neurons.py's tables
"""
