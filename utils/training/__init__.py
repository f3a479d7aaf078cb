"""From examples to a LoRA adapter.

texts    examples -> token ids and which of them are in the loss
loss     cross-entropy in chunks of the vocabulary
cpu      a CPU's memory and LoRA layers, for a fast step
recipe   the numbers of a training, ours and the paper's
carried  accumulations that go on from one epoch into the next
trainer  the run: adapter, batches, log

What each example did to other questions:

measures     numbers of a question, of which more is better
retraining   adapters trained without some of the examples
influence    gradients of LoRA's weights, and EK-FAC
similarity   gradient cosine's rivals: hidden states, BM25, random numbers
attribution  sums over contexts or languages, and how well one way predicts another
"""
