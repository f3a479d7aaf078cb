"""Data sets and texts.

examples   data sets -> Example, SentencePair
prompts    Example -> text
corpora    sentences in many languages; the table of word counts
cldr       Unicode's names of things -> a table of concepts
downloads  downloads that go on where they stopped; archives
"""
