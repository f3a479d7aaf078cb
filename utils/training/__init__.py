"""From examples to a LoRA adapter.

texts    examples -> token ids and which of them are in the loss
loss     cross-entropy in chunks of the vocabulary
cpu      a CPU's memory and LoRA layers, for a fast step
recipe   the paper's numbers, stated once
trainer  the run: adapter, batches, log
"""
