"""From examples to a LoRA adapter.

texts    examples -> token ids and which of them are in the loss
loss     cross-entropy in chunks of the vocabulary
cpu      a CPU's memory and LoRA layers, for a fast step
recipe   the numbers of a training, ours and the paper's
carried  accumulations that go on from one epoch into the next
trainer  the run: adapter, batches, log
"""
