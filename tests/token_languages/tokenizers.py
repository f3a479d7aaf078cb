"""Tokenizers of every kind, made in-process, and matrices made by hand."""

import numpy as np
import scipy.sparse as sp
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from utils.languages import NOT_LANGUAGES
from utils.token_languages.matrix import TokenLanguages
from utils.token_languages.pieces import (
    encode_all,
    read_pieces,
    vocabulary_size,
)

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
LANGUAGES = ["deu_Latn", "eng_Latn", "hin_Deva", "mar_Deva", "ory_Orya", "zho_Hans"]
# Texts that belong to no language, in any script.
PUNCTUATION = ["!", "?!", "،", "।", "॥", "。", "—", "«", " (", "...", "€", " +"]
DIGITS = ["7", " 12", "३", "१२", "٣", " ١٢", "½", "²"]
WHITE_SPACE = [" ", "   ", "\n", "\n\n", "\t", "\u00a0", "\u3000", "\u200d", "\u200b"]
EMOJI = ["🙂", " 🙂", "❤️", "👍🏽", "👨‍👩‍👧", "🇮🇳"]
WORDS = ["A", " the", "the", "ओ", "ି", " ଓଡ଼ିଆ", "中", "a1", "l'", "é", "\u0301"]


def spelled(content: str | bytes) -> str:
    """GPT-2's spelling of bytes."""
    content = content.encode() if isinstance(content, str) else content
    return "".join(bytes_to_unicode()[byte] for byte in content)


def fast(tokenizer):
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def byte_level(*texts):
    """A byte-level tokenizer whose vocabulary is all bytes and the given texts, each of them one token."""
    pieces = dict.fromkeys([*SPECIAL, *sorted(bytes_to_unicode().values()), *map(spelled, texts)])
    tokenizer = Tokenizer(models.BPE({piece: id for id, piece in enumerate(pieces)}, [], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return fast(tokenizer)


def sentencepiece(*texts, first_id=260, adds_space=False):
    """A tokenizer as Gemma's, or Llama 2's (adds_space): byte pieces, U+2581 for a space, each text one token."""
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    ids = {piece: id for id, piece in enumerate(pieces)}
    for text in texts:
        ids.setdefault(text.replace(" ", "\u2581"), first_id + len(ids) - len(pieces))
    model = models.BPE(ids, [], unk_token="<unk>", byte_fallback=True, ignore_merges=True)
    tokenizer = Tokenizer(model)
    replace = normalizers.Replace(" ", "\u2581")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), replace]) if adds_space else replace
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return fast(tokenizer)


BUILDERS = {"byte-level": byte_level, "sentencepiece": sentencepiece}


def kinds(tokenizer):
    """Text of a token as it was given -> its Piece's kind."""
    pieces = read_pieces(tokenizer)
    return {piece.text or piece.raw: piece.kind for piece in pieces}


def token(tokenizer, text) -> int:
    (ids,) = encode_all(tokenizer, [text])
    assert len(ids) == 1, (text, ids)
    return ids[0]


def row(matrix, id) -> dict[str, float]:
    """Channel -> probability, where it is above zero."""
    values = matrix.probs[[id]].toarray()[0]
    return {channel: float(value) for channel, value in zip(matrix.channels, values) if value}


def made_by_hand(tokenizer, languages, rows) -> TokenLanguages:
    """rows: text -> a probability for each language and, where there is one more, zxx; other tokens are und."""
    channels = [*languages, *NOT_LANGUAGES]
    probs = np.zeros((vocabulary_size(tokenizer), len(channels)), np.float32)
    for text, values in rows.items():
        probs[token(tokenizer, text), : len(languages)] = values[: len(languages)]
        probs[token(tokenizer, text), channels.index("zxx")] = sum(values[len(languages) :])
    probs[:, channels.index("und")] += 1 - probs.sum(axis=1)
    return TokenLanguages(sp.csr_matrix(probs), channels, {})
