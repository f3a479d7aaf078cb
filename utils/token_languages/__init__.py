"""Which languages does a token belong to, and how much of each is in a distribution?

pieces        a tokenizer's pieces, their scripts, texts -> counts of tokens
from_corpus   P(language | token) from a corpus
from_langid   P(language | token) as the paper has it
matrix        the matrix: made, kept, loaded
shares        the mixture of languages that explains a distribution best
removal       a language's part of a distribution, and random ones as large
evaluation    shares of text whose language is known
"""
