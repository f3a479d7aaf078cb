"""What the scripts share, in the order of the data flow.

command_line   errors as a user sees them: one line, exit status 2
results        run folders, configurations, tables, atomic writes
languages      codes and names of languages
examples       data sets -> Example, SentencePair
prompts        Example -> text
models         load a model and its adapter; its layers, final norm and unembedding
hidden_states  texts -> hidden states [position, layer, width]
lens           hidden states -> vocabulary probabilities and what is read off them
vocabulary     the token x language matrix
probe_results  what a probe keeps while it runs; its tables
generation     prompts -> answers
scores         answers -> exact match, F1, what went wrong, intervals
predictions    a run's answers in their file
comparisons    two runs over the same examples -> changes, intervals, p, q
cpu_training   a CPU's memory and LoRA layers, for a fast step
training       examples -> a LoRA adapter
figures        tables -> figures
published      the curves of the paper's authors, beside ours
suppression    the fall of interfering languages beside the gain in F1
translations   how good a translated training set is
claims         the paper's claims -> verdicts, by fixed rules
reports        an experiment's runs -> tables, figures, REPORT.md

Imports go only upward in that list.
"""
