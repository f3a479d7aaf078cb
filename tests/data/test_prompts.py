"""Every prompt, compared as a whole string."""

import pytest

from utils.data.examples import Example, SentencePair
from utils.data.prompts import QA_TEMPLATES, reference, render, render_answered, render_shots

WATER = Example("water-1", "xquad", "eng_Latn", "Water boils at 100 °C.", "When does it boil?", ["at 100 °C", "100 °C"])
PAIR = SentencePair("test-1", "sample_parallel", "eng_Latn", "ory_Orya", "Good morning.", "ଶୁଭ ସକାଳ।")

PROMPTS = {
    "plain": "Water boils at 100 °C.\n\nQ: When does it boil?\nA:",
    "short_span": (
        "Water boils at 100 °C.\n\nNow answer the following question in a short span. Please do not hallucinate, and "
        "answer based on the above provided context.\nQ: When does it boil?\nA:"
    ),
    "instruction": (
        "Instruction: Answer the question based on the context.\nInput: Context: Water boils at 100 °C. Question: "
        "When does it boil?\nOutput:"
    ),
}


def test_every_template_has_its_string_here():
    assert set(QA_TEMPLATES) == set(PROMPTS)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_question(prompt):
    assert render(WATER, prompt) == PROMPTS[prompt]
    assert render_answered(WATER, prompt) == PROMPTS[prompt] + " at 100 °C"  # the first of the answers


def test_the_plain_prompt_is_the_default():
    assert render(WATER) == PROMPTS["plain"]
    assert render_answered(WATER) == "Water boils at 100 °C.\n\nQ: When does it boil?\nA: at 100 °C"


ICE = Example("ice-1", "xquad", "ory_Orya", "ବରଫ ଭାସେ।", "କ’ଣ ଭାସେ?", [" ବରଫ "])
SHOTS = {
    "plain": "Water boils at 100 °C.\n\nQ: When does it boil?\nA: at 100 °C\n\nବରଫ ଭାସେ।\n\nQ: କ’ଣ ଭାସେ?\nA: ବରଫ\n\n",
    "short_span": (
        "Water boils at 100 °C.\n\nNow answer the following question in a short span. Please do not hallucinate, and "
        "answer based on the above provided context.\nQ: When does it boil?\nA: at 100 °C\n\n"
        "ବରଫ ଭାସେ।\n\nNow answer the following question in a short span. Please do not hallucinate, and "
        "answer based on the above provided context.\nQ: କ’ଣ ଭାସେ?\nA: ବରଫ\n\n"
    ),
    "instruction": (
        "Instruction: Answer the question based on the context.\nInput: Context: Water boils at 100 °C. Question: "
        "When does it boil?\nOutput: at 100 °C\n\n"
        "Instruction: Answer the question based on the context.\nInput: Context: ବରଫ ଭାସେ। Question: "
        "କ’ଣ ଭାସେ?\nOutput: ବରଫ\n\n"
    ),
}


@pytest.mark.parametrize("prompt", PROMPTS)
def test_solved_examples_before_a_question(prompt):
    assert render_shots([WATER, ICE], prompt) == SHOTS[prompt]


def test_no_solved_examples_are_no_text():
    assert render_shots([], "instruction") == ""
    assert render_shots([WATER, ICE]) == SHOTS["plain"]


def test_a_sentence_pair():
    assert render(PAIR) == "Translate the following text to Odia\nQ:Good morning.\nA:"
    assert render_answered(PAIR) == "Translate the following text to Odia\nQ:Good morning.\nA: ଶୁଭ ସକାଳ।"


@pytest.mark.parametrize("prompt", QA_TEMPLATES)
def test_what_looks_like_a_template_in_a_text_stays_as_it_is(prompt):
    odd = Example("1", "xquad", "eng_Latn", "{question} {0} %s", "{context}\\n{{}}?", ["{answer}"])
    expected = (
        PROMPTS[prompt].replace("Water boils at 100 °C.", odd.context).replace("When does it boil?", odd.question)
    )
    assert render(odd, prompt) == expected


def test_texts_are_not_stripped():
    spaced = Example("1", "xquad", "eng_Latn", " a\u00a0b \n", " c? ", ["d"])
    assert render(spaced) == " a\u00a0b \n\n\nQ:  c? \nA:"


@pytest.mark.parametrize("read", [reference, render_answered, lambda example: render_shots([WATER, example])])
def test_an_unanswerable_question_is_refused_by_name(read):
    unanswerable = Example("42", "indicqa", "ory_Orya", "c", "q", [])
    assert render(unanswerable) == "c\n\nQ: q\nA:"
    with pytest.raises(ValueError, match="indicqa ory_Orya 42: unanswerable"):
        read(unanswerable)


@pytest.mark.parametrize("prompt", ["short_span", "instruction", "nonsense"])
def test_a_sentence_pair_takes_only_the_plain_prompt(prompt):
    with pytest.raises(ValueError, match=rf"{prompt}.*sample_parallel.*choose from plain"):
        render(PAIR, prompt)


def test_an_unknown_prompt_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="unknown prompt 'long': choose from plain, short_span, instruction"):
        render(WATER, "long")
