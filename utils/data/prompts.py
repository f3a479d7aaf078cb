"""Example -> the text that a model reads: the paper's prompts, character for character."""

from utils.data.examples import Example, OwnText, SentencePair
from utils.languages import language_name

QA_TEMPLATES = {
    "plain": "{context}\n\nQ: {question}\nA:",
    "short_span": (
        "{context}\n\nNow answer the following question in a short span. Please do not hallucinate, "
        "and answer based on the above provided context.\nQ: {question}\nA:"
    ),
    "instruction": (
        "Instruction: Answer the question based on the context.\n"
        "Input: Context: {context} Question: {question}\nOutput:"
    ),
}
TRANSLATION_TEMPLATE = "Translate the following text to {language}\nQ:{source}\nA:"


def render(example: Example | SentencePair | OwnText, prompt: str = "plain") -> str:
    """The prompt of an example. Raises ValueError for a prompt that the kind of example doesn't have.

    Sentence pairs have one form, the translation prompt, which goes by `plain`. A user's own text is its prompt.
    """
    if isinstance(example, OwnText):
        return example.text
    if isinstance(example, SentencePair):
        if prompt != "plain":
            raise ValueError(f"--prompt {prompt} asks a question; {example.dataset} is translated: choose from plain")
        return TRANSLATION_TEMPLATE.format(language=language_name(example.target_lang), source=example.source)
    if prompt not in QA_TEMPLATES:
        raise ValueError(f"unknown prompt {prompt!r}: choose from {', '.join(QA_TEMPLATES)}")
    return QA_TEMPLATES[prompt].format(context=example.context, question=example.question)


def reference(example: Example | SentencePair) -> str:
    """What the model should write after the prompt: the first gold answer, or the target sentence.

    Raises ValueError for an unanswerable question.
    """
    if isinstance(example, SentencePair):
        return example.target
    if not example.answers:
        raise ValueError(f"{example.dataset} {example.lang} {example.id}: unanswerable, so there is no answer to read")
    return example.answers[0].strip()  # some of IndicQA's begin with a space, and the prompt has one already


def render_shots(shots: list[Example], prompt: str = "plain") -> str:
    """Solved examples, each followed by a blank line: what stands before the prompt that is to be answered."""
    return "".join(f"{render_answered(shot, prompt)}\n\n" for shot in shots)


def render_answered(example: Example | SentencePair, prompt: str = "plain") -> str:
    """The training text without its end-of-sequence token: the prompt, a space, the answer."""
    return f"{render(example, prompt)} {reference(example)}"
