"""Neurons that speak a language, and what forcing them does.

experts          responses -> AUROC of each neuron for each language; the most expert ones; nulls; overlaps
effects          what a model with or without forced neurons makes of sentences: mean states, losses
retrieval        mean states in several languages -> alignment, retrieval, paired changes
steering         records of a steered model -> tables, and claims with their verdicts
language_probes  hidden states of tokens -> how well a linear probe tells their language
directions       mean states of sentences -> a language's direction; its experts and means, half by half
concepts         names of concepts in frames -> expert neurons of a concept, and what languages share of them
"""
