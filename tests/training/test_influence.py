"""Gradients of LoRA's weights against plain ones, EK-FAC against dense matrices, half precision against whole."""

import copy

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from torch.nn.functional import cross_entropy

from tests.conftest import tiny_causal_lm
from tests.scripts import save_adapter
from utils.data.examples import Example
from utils.models.families import lens_model
from utils.models.loading import load_model
from utils.training import influence
from utils.training.texts import NOT_IN_THE_LOSS, training_text

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = "ice water fire stone river bread window garden clock mountain road bird salt moon".split()


@pytest.fixture(scope="module")
def model(llama, adapter):
    """A tiny model with an adapter that matters, in float64."""
    loaded = load_model(str(llama), adapter)
    loaded.causal_lm.double()
    return loaded


@pytest.fixture(scope="module")
def blocks(model):
    return influence.lora_blocks(model)


@pytest.fixture(scope="module")
def texts(tiny_tokenizer):
    examples = [
        Example(word, "tests", "eng_Latn", f"There is {word} here.", f"What is {WORDS[-i]}?", [f"{word} {i}"])
        for i, word in enumerate(WORDS)
    ]
    losses = ["all" if i % 5 == 3 else "answer" for i in range(len(examples))]
    return [training_text(tiny_tokenizer, example, loss) for example, loss in zip(examples, losses)]


@pytest.fixture(scope="module")
def curvatures(model, blocks, texts):
    return influence.fit_curvature(model, blocks, texts, seed=3)


def test_the_blocks_are_both_factors_of_every_lora_layer(model, blocks):
    assert len(blocks) == 2 * 3 * 3  # q, v and up of three layers
    trained = {id(weight) for weight in model.causal_lm.parameters() if weight.requires_grad}
    assert trained == {id(block.weight) for block in blocks.values()}


def test_a_loss_gradient_is_that_of_the_whole_logits(model, blocks, texts):
    for text in texts[:2]:
        ids, labels = torch.tensor([text.ids]), torch.tensor(text.labels)[1:]
        logits = model.causal_lm(input_ids=ids).logits[0, :-1]
        loss = cross_entropy(logits, labels, ignore_index=NOT_IN_THE_LOSS, reduction="sum")
        expected = torch.autograd.grad(loss, [block.weight for block in blocks.values()])
        for here, there in zip(influence.loss_gradient(model, blocks, text), expected):
            assert (here - there).abs().max() <= 1e-5 * there.abs().max()  # the chunked loss is of float32


def test_ekfac_is_the_dense_inverse_of_its_eigenvectors_and_eigenvalues(curvatures, blocks):
    generator = torch.Generator().manual_seed(0)
    for one, block in zip(curvatures, blocks.values()):
        gradient = torch.randn(block.weight.shape, generator=generator, dtype=torch.float64)
        basis = torch.kron(one.outputs, one.inputs)  # of the weight row by row
        fisher = basis @ torch.diag(one.values.flatten()) @ basis.T
        assert (basis @ basis.T - torch.eye(len(basis))).abs().max() < 1e-6
        damped = fisher + 0.1 * one.values.mean() * torch.eye(len(basis))
        expected = torch.linalg.solve(damped, gradient.flatten())
        assert (one.inverse(gradient).flatten() - expected).norm() <= 1e-4 * expected.norm()


def test_its_bases_are_eigenvectors_of_the_covariances(model, blocks, texts, curvatures):
    """The inputs, seen by PEFT's own layers; the gradients, from the weights': dW = sum of g x^T."""
    name, block = next(iter(blocks.items()))
    seen = []
    handle = block.register_forward_hook(lambda module, args, output: seen.append(args[0].detach()[0]))
    for text in texts:
        model.causal_lm(input_ids=torch.tensor([text.ids]))
    handle.remove()
    x = torch.cat([rows for rows in seen])
    rotated = curvatures[0].inputs.T @ (x.T @ x) @ curvatures[0].inputs
    diagonal = torch.diag(rotated)
    assert (rotated - torch.diag(diagonal)).abs().max() < 1e-8 * diagonal.max(), name
    assert not block._forward_hooks


def test_its_eigenvalues_are_the_second_moments_of_the_texts_gradients(model, blocks, texts, curvatures):
    totals = [torch.zeros_like(one.values) for one in curvatures]
    for i, text in enumerate(texts):
        drawn = influence.sampled_gradient(model, blocks, text, influence._generator(3, 2 * i + 1))
        for total, one, gradient in zip(totals, curvatures, drawn):
            for row in range(total.shape[0]):
                for column in range(0, total.shape[1], 7):
                    weight = torch.outer(one.outputs[:, row], one.inputs[:, column])
                    total[row, column] += (weight * gradient).sum() ** 2
    for total, one in zip(totals, curvatures):
        assert torch.allclose(total[:, ::7], one.values[:, ::7], rtol=1e-6)


def test_drawn_labels_have_the_gauss_newton_matrix_as_second_moment(model, blocks, texts):
    """v^T G v = sum over positions of the variance, under the model, of the logits' change along v."""
    text, weights = texts[0], [block.weight for block in blocks.values()]
    in_loss = torch.tensor(text.labels)[1:] != NOT_IN_THE_LOSS
    generator = torch.Generator().manual_seed(5)
    directions = [[torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in weights] for _ in range(3)]

    def logits(direction, step):
        with torch.no_grad():
            for weight, part in zip(weights, direction):
                weight.add_(step * part)
            found = model.causal_lm(input_ids=torch.tensor([text.ids])).logits[0, :-1][in_loss]
            for weight, part in zip(weights, direction):
                weight.sub_(step * part)
        return found

    probs = torch.softmax(logits(directions[0], 0), dim=-1)
    expected = []
    for direction in directions:
        change = (logits(direction, 1e-6) - logits(direction, -1e-6)) / 2e-6
        expected.append(((probs * change**2).sum(dim=1) - (probs * change).sum(dim=1) ** 2).sum())
    squares = torch.zeros(3, dtype=torch.float64)
    n_draws = 300  # a square of theirs is off by .08 then, their mean by .05
    for draw in range(n_draws):
        found = influence.sampled_gradient(model, blocks, text, torch.Generator().manual_seed(draw))
        squares += torch.stack([sum((a * b).sum() for a, b in zip(found, v)) for v in directions]) ** 2
    ratio = squares / n_draws / torch.stack(expected)
    assert ratio.mean() == pytest.approx(1, abs=0.12) and (ratio - 1).abs().max() < 0.3


def test_what_is_learnt_helps_itself_and_the_influence_of_a_measure_has_its_sign(model, blocks, texts, curvatures):
    loss = influence.loss_gradient(model, blocks, texts[3])
    minus_loss = [-part for part in loss]  # a measure of which more is better
    for of in (curvatures, None):
        direction = influence.influence_direction(minus_loss, of)
        helps = sum((a * b).sum() for a, b in zip(direction, loss))
        hurts = sum((a * -b).sum() for a, b in zip(direction, loss))
        assert helps > 0 > hurts
    cosine = sum((a * b).sum() for a, b in zip(direction, influence.unit_length(loss)))
    assert cosine == pytest.approx(1)


def test_directions_in_half_precision(tmp_path, curvatures, blocks):
    rng = np.random.default_rng(0)
    shapes = [block.weight.shape for block in blocks.values()]

    def drawn():
        return [torch.tensor(rng.normal(size=shape)) * 10.0 ** -(i % 9) for i, shape in enumerate(shapes)]

    gradients = [drawn() for _ in range(4)]
    kept, again = influence.Directions(), influence.Directions()
    for one in gradients[:3]:
        kept.add(one)
    kept.save(tmp_path / "directions.npz")
    again.add_saved(tmp_path / "directions.npz")
    expected = [sum(float((a * b).sum()) for a, b in zip(one, gradients[3])) for one in gradients[:3]]
    length = sum(float((part**2).sum()) for part in gradients[3])
    assert np.abs(kept.products(gradients[3]) - expected).max() < 1e-3 * length
    assert (kept.products(gradients[3]) == again.products(gradients[3])).all()


def test_curvatures_are_all_there_or_none(tmp_path, curvatures, blocks):
    assert influence.saved_curvatures(tmp_path, blocks) is None
    influence.save_curvatures(tmp_path, curvatures)
    for one, other in zip(influence.saved_curvatures(tmp_path, blocks), curvatures):
        assert one.values.equal(other.values) and one.inputs.equal(other.inputs) and one.outputs.equal(other.outputs)
    next(tmp_path.glob("curvature-0003*")).unlink()
    assert influence.saved_curvatures(tmp_path, blocks) is None


def test_an_adapter_that_was_never_trained_is_refused(llama, texts, tmp_path):
    save_adapter(llama, tmp_path, std=0.0)
    untrained = load_model(str(llama), tmp_path)
    with pytest.raises(ValueError, match="gradients of .* are all zero; was it trained"):
        influence.fit_curvature(untrained, influence.lora_blocks(untrained), texts[:1], seed=0)


def test_a_model_without_an_adapter_is_refused(tiny_tokenizer):
    with pytest.raises(ValueError, match="no LoRA layer"):
        influence.lora_blocks(lens_model(tiny_causal_lm("llama", len(tiny_tokenizer)), tiny_tokenizer))


# --- beside the exact matrix -------------------------------------------------------------------------------------


def gauss_newton(model, weights, text):
    """Exact, over all weights together: sum over positions of J^T W^T (diag(p) - p p^T) W J; [weight, weight]."""
    ids, labels = torch.tensor([text.ids]), torch.tensor(text.labels)[1:]
    states = model.decoder(input_ids=ids, use_cache=False).last_hidden_state[0, :-1][labels != NOT_IN_THE_LOSS]
    basis = torch.eye(states.numel(), dtype=states.dtype).view(-1, *states.shape)
    by_weight = torch.autograd.grad(states, weights, basis, is_grads_batched=True)
    jacobian = torch.cat([part.flatten(1) for part in by_weight], dim=1).view(*states.shape, -1)
    unembedding = model.unembedding.weight.detach()
    total = 0
    for state, of_position in zip(states.detach(), jacobian):
        probs = torch.softmax(state @ unembedding.T, dim=-1)
        mean = probs @ unembedding
        of_state = (unembedding * probs[:, None]).T @ unembedding - torch.outer(mean, mean)
        total = total + of_position.T @ of_state @ of_position
    return total


def by_exact_matrix(matrix, gradients, measures, sizes, by_block):
    """[text, query] with the matrix and damping of .1 of each block's mean eigenvalue; by_block: no cross terms."""
    ends = np.cumsum(sizes)
    blocks = [slice(end - n, end) for end, n in zip(ends, sizes)]
    means = torch.cat([torch.diag(matrix)[block].mean().expand(n) for block, n in zip(blocks, sizes)])
    damped = matrix + torch.diag(0.1 * means)
    parts = blocks if by_block else [slice(None)]
    solved = [torch.linalg.solve(damped[part, part], measures[:, part].T) for part in parts]
    return -(gradients @ torch.cat(solved)).numpy()


def influences_beside_exact_ones(model, texts, queries):
    """(EK-FAC's, the exact matrix's, that of its blocks), each [text, query]; no query is among the texts."""
    blocks = influence.lora_blocks(model)
    weights = [block.weight for block in blocks.values()]
    curvatures = influence.fit_curvature(model, blocks, texts, seed=0)
    of_texts, of_queries = (
        [influence.loss_gradient(model, blocks, text) for text in some] for some in (texts, queries)
    )
    directions = [influence.influence_direction([-part for part in one], curvatures) for one in of_queries]
    flat, measured, ours = (
        torch.stack([torch.cat([part.flatten() for part in one]) for one in some])
        for some in (of_texts, of_queries, directions)
    )
    matrix = sum(gauss_newton(model, weights, text) for text in texts)
    sizes = [weight.numel() for weight in weights]
    exact = [by_exact_matrix(matrix, flat, -measured, sizes, by_block) for by_block in (False, True)]
    return (flat @ ours.T).numpy(), *exact


@pytest.mark.parametrize("scale", [1.0])  # docs/attribution.md has 0.3 too
def test_ekfac_beside_the_exact_damped_matrix(model, texts, scale):
    """docs/attribution.md has these figures, and those of another mixture of texts (`pytest -s`)."""
    changed = copy.copy(model)
    with torch.no_grad():
        for block in influence.lora_blocks(changed).values():
            block.weight.mul_(scale)
    try:
        ours, exact, of_blocks = influences_beside_exact_ones(changed, texts[:-4], texts[-4:])
    finally:
        with torch.no_grad():
            for block in influence.lora_blocks(changed).values():
                block.weight.div_(scale)
    for other, floor, name in ((exact, 0.7, "all weights together"), (of_blocks, 0.8, "each block alone")):
        r, rho = pearsonr(ours.ravel(), other.ravel())[0], spearmanr(ours.ravel(), other.ravel())[0]
        of_query = np.mean([spearmanr(a, b)[0] for a, b in zip(ours.T, other.T)])
        print(f"weights x {scale}, exact for {name}: Pearson {r:.2f}, Spearman {rho:.2f}, by query {of_query:.2f}")
        assert r > floor and rho > 0.4, (name, r, rho)
