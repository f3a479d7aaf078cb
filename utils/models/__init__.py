"""Models and what they compute.

families       where each family keeps its layers and norm; LensModel
loading        a name -> a LensModel with its adapter
offline        the offline model, assembled and converted once
fingerprints   a checksum of a model's weights
checks         finite numbers; how far rounding may reach
hidden_states  texts -> hidden states [position, layer, width]
prefixes       prompts that begin alike, read together
stems          what prompts begin with, held once for all rows that go on from it
mapped         memory of weights that a file has, given back
arithmetic     the same numbers sooner on a CPU: maps, attention, the likeliest tokens
interventions  neurons of the MLPs: read, and forced
ablations      a language taken out: a direction, neurons, its part of the last logits
processes      several processes that do one run together
"""
