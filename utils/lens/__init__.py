"""From hidden states to languages by layer.

lenses        hidden states -> the last layer's coordinates: logit, tuned, Jacobian
jacobian      fits the Jacobian lens
tuned         fits the tuned lens
fitting       texts to fit on; fits that go on where they were stopped
distributions distributions over the vocabulary, by pieces
reading       hidden states -> vocabulary probabilities and what is read off them
records       what a probe keeps while it runs; writes its tables
grid          the same reading at every position of a few prompts
null_prompts  the same reading of random tokens
probe_runs    reads a finished probe
published     the curves of the paper's authors, beside ours
"""
