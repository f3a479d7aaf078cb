"""From prompts to scored answers.

generation     prompts -> answers
normalisation  how texts are made alike before they are compared
scores         answers -> exact match, F1, what went wrong
predictions    a run's answers in their file
"""
