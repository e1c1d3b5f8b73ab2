"""model.py against independent truths: transformers' GPT-2, a float64 loop without cache, a second way to write the file."""
import json
import math
import struct

import pytest
import torch
import torch.nn.functional as F

from model import GPT, GPTConfig, KVCache, read_safetensors

SHAPES = [(97, 32, 1, 1, 8), (301, 64, 3, 4, 48), (1000, 128, 4, 4, 128)]


def small_model(vocab_size=50, block_size=24, n_layer=2, n_head=2, n_embd=16, seed=1):
    return GPT(GPTConfig(vocab_size, block_size, n_layer, n_head, n_embd)).initialise(seed).double()


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_gradients_are_those_of_transformers(shape, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle here: pip install transformers")
    vocab_size, block_size, n_layer, n_head, n_embd = shape
    model = GPT(GPTConfig(vocab_size, block_size, n_layer, n_head, n_embd)).initialise(3)
    with torch.no_grad():  # larger weights than at the start, so that every term counts
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    model.save(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    model.double()
    ids = torch.randint(vocab_size, (3, block_size), generator=torch.Generator().manual_seed(0))
    ours_logits, their_logits = model(ids), theirs(ids).logits
    torch.testing.assert_close(ours_logits, their_logits, rtol=1e-9, atol=1e-9)
    for logits in (ours_logits, their_logits):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    their_grads = dict(theirs.transformer.named_parameters())
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, their_grads[name].grad, rtol=1e-8, atol=1e-12, msg=lambda m: f"{name}: {m}")


def test_a_folder_written_by_transformers_opens_to_the_same_logits(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle here: pip install transformers")
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=77, n_positions=40, n_embd=24, n_layer=2, n_head=3))
    theirs.eval().save_pretrained(tmp_path)
    ids = torch.randint(77, (2, 40))
    torch.testing.assert_close(GPT.open(tmp_path)(ids), theirs(ids).logits, rtol=1e-4, atol=1e-5)


def test_ragged_cached_batch_equals_each_row_alone_without_cache():
    model = small_model()
    rows = [torch.randint(50, (n,), generator=torch.Generator().manual_seed(n)) for n in (24, 3, 11, 17)]
    cache = KVCache(model.config, len(rows), dtype=torch.float64)
    lengths = [0] * len(rows)
    generator = torch.Generator().manual_seed(0)
    while any(n < len(row) for n, row in zip(lengths, rows)):
        # some rows go on by 1 to 4 tokens, in any order, the others wait
        ready = [r for r, row in enumerate(rows) if lengths[r] < len(row)]
        chosen = [ready[i] for i in torch.randperm(len(ready), generator=generator)[:3]]
        feeds = [rows[r][lengths[r]:lengths[r] + int(torch.randint(1, 5, (), generator=generator))] for r in chosen]
        T = max(len(feed) for feed in feeds)
        ids = torch.stack([F.pad(feed, (0, T - len(feed)), value=49) for feed in feeds])
        start = torch.tensor([lengths[r] for r in chosen])
        ends = [lengths[r] + len(feed) for r, feed in zip(chosen, feeds)]
        cache.place(start, T, max(ends), torch.tensor(chosen))
        last = torch.tensor([i * T + len(feed) - 1 for i, feed in enumerate(feeds)])
        logits = model(ids, last, cache)
        for i, r in enumerate(chosen):
            torch.testing.assert_close(logits[i], model(rows[r][None, :ends[i]])[0, -1], rtol=1e-9, atol=1e-9)
            lengths[r] = ends[i]


def test_all_rows_of_the_cache_step_together_as_alone():
    model = small_model()
    ids = torch.randint(50, (3, 9))
    cache = KVCache(model.config, 3, dtype=torch.float64)
    cache.place(torch.zeros(3, dtype=torch.long), 4, 4)
    model(ids[:, :4], cache=cache)
    for t in range(4, 9):
        cache.place(torch.full((3,), t), 1, t + 1)
        logits = model(ids[:, t:t + 1], cache=cache)
        torch.testing.assert_close(logits[:, 0], model(ids[:, :t + 1])[:, -1], rtol=1e-9, atol=1e-9)


def test_at_gives_the_logits_of_the_chosen_positions():
    model = small_model()
    ids = torch.randint(50, (3, 9))
    at = torch.tensor([0, 8, 13, 26])
    torch.testing.assert_close(model(ids, at), model(ids).flatten(0, 1)[at])


def test_initial_weights_have_the_published_deviations_and_embeddings_ten_times_theirs():
    model = GPT(GPTConfig(5000, 256, 8, 4, 256)).initialise(0)
    apart = [i for j in range(32) for i in (j, 128 + j)]  # the sinusoids by which 4 heads of 64 look back
    assert model.wte.weight[:, apart].abs().max() == 0
    assert abs(model.wte.weight[:, [i for i in range(256) if i not in apart]].std() - 0.2) < 1e-3
    assert abs(model.wpe.weight.norm(dim=1) - 0.3 * math.sqrt(128)).max() < 1e-4  # sin^2 + cos^2 = 1 in each of 128 pairs
    assert abs(model.h[0].mlp.c_fc.weight.std() - 0.02) < 2e-4
    assert abs(model.h[5].mlp.c_proj.weight.std() - 0.02 / 4) < 1e-4  # sqrt(2 * 8) = 4
    assert model.h[1].attn.c_attn.bias.abs().max() == 0 and (model.h[3].ln_2.weight == 1).all()
    assert 0.2 < model(torch.randint(5000, (2, 99))).std() < 0.5  # sqrt(256) * 0.02 = 0.32: as without either


@pytest.mark.parametrize("n_head", [1, 2, 4, 8])
def test_heads_of_the_first_layer_look_back_at_first(n_head):
    """Each head's attention, computed by hand, is mostly on the token 1, 2, 3, ... before."""
    model = GPT(GPTConfig(500, 300, 1, n_head, 128)).initialise(0)
    x = model.wte(torch.randint(500, (200,), generator=torch.Generator().manual_seed(1))) + model.wpe.weight[50:250]
    q, k, _ = model.h[0].attn.c_attn(model.h[0].ln_1(x)).view(200, 3, n_head, -1).permute(1, 2, 0, 3)  # (n_head, 200, head_dim)
    scores = (q @ k.mT / math.sqrt(128 // n_head)).masked_fill(torch.ones(200, 200).triu(1).bool(), -math.inf)
    for back, attention in enumerate(scores.softmax(-1), 1):
        assert attention.diagonal(-back).mean() > (0.7 if n_head < 8 else 0.4)


def test_saved_and_opened_again_has_the_same_bytes(tmp_path):
    model = small_model().float()
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    model.save(tmp_path / "a")
    GPT.open(tmp_path / "a").save(tmp_path / "b")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    raw = (tmp_path / "a" / "model.safetensors").read_bytes()  # read by hand
    n, = struct.unpack("<Q", raw[:8])
    entry = json.loads(raw[8:8 + n])["transformer.h.0.mlp.c_fc.bias"]
    first, last = entry["data_offsets"]
    assert entry["shape"] == [64] and last - first == 256
    assert torch.equal(torch.tensor(struct.unpack("<64f", raw[8 + n + first:8 + n + last])), model.h[0].mlp.c_fc.bias)


@pytest.mark.parametrize("spoil, told", [
    (lambda raw: raw[:5], "only 5 bytes"),
    (lambda raw: raw[:-4], "does not fit|header describes"),
    (lambda raw: raw + b"more", "header describes"),
    (lambda raw: (2 ** 60).to_bytes(8, "little") + raw[8:], "header would end"),
    (lambda raw: raw[:8] + b"}" + raw[9:], "broken safetensors header"),
    (lambda raw: raw.replace(b'"F32"', b'"I32"', 1), "dtype I32"),
    (lambda raw: raw.replace(b'"shape":[64]', b'"shape":[65]', 1), "does not fit its bytes"),
    (lambda raw: raw.replace(b'"shape":[64]', b'"shape":[-4]', 1), "broken shape|does not fit"),
])
def test_a_spoilt_weights_file_is_refused_in_one_line(spoil, told, tmp_path):
    small_model().float().save(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=told) as error:
        read_safetensors(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("field, value, told", [
    ("model_type", "llama", "model_type"), ("n_head", 3, "impossible"), ("n_embd", None, "number"),
    ("activation_function", "relu", "activation_function"), ("n_layer", 3, "missing"), ("n_layer", 1, "unexpected tensor"),
    ("vocab_size", 51, "wte.weight is"),
])
def test_a_config_that_does_not_fit_is_refused_in_one_line(field, value, told, tmp_path):
    small_model().float().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config[field] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=told) as error:
        GPT.open(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
