"""What the scripts share. Each wing's `__init__` says in a line what each of its modules does.

checksums        SHA-256 of files; of large ones it is kept
outside          files of others, and their texts in our messages
processes        one process at a time on a folder; children that end with their parent
command_line     errors as a user sees them: one line, exit status 2
schemas          the forms of what is read from outside
runs             run folders, configurations, tables, atomic writes
languages        codes, names and scripts of languages; the four channels that are no language
uncertainty      intervals, tests, odds, false discoveries

data             data sets -> examples -> prompts; corpora; downloads
models           models and what they compute: families, hidden states, shared prefixes
token_languages  the token x language matrix, and the shares that are read with it
answers          prompts -> answers -> scores
training         examples -> a LoRA adapter
neurons          sentences -> neurons that speak a language, and what forcing them does
lens             hidden states -> languages by layer; lenses, and what fits them
figures          tables -> figures
experiments      many runs -> one report

The first eight import none of ours but those before them. data and models import these alone; token_languages imports
data; answers, training and neurons import data and models; lens imports models and token_languages; figures read
tables through `lens.probe_runs`, `lens.published`, `answers.predictions` and `runs`, and never import torch;
experiments may import all. `tests/test_imports.py` holds this.
"""
