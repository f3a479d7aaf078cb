"""Many runs, one report.

presets           the experiments that can be run
plan              an experiment's commands
costs             tokens and hours of the commands
tables            the tables of an experiment, joined from its runs
suppression       the fall of interfering languages beside the gain
translations      how good a translated training set is
claims            the paper's claims -> verdicts, by fixed rules
english_middle    is the English of the middle layers the lens's or the model's: a fixed rule
ablations         ways to take a language away, with their controls
ablation_tables   what that does -> tables, and a verdict by a fixed rule
elsewhere         what a report takes of another machine's
drawings          an experiment's figures
report            REPORT.md
published_report  REPORT.md of the published curves
"""
