"""model.py against independent truths: transformers' GPT-2, a float64 loop without cache, a second way to write the file, a
local server that breaks off."""
import copy
import hashlib
import http.server
import json
import math
import os
import random
import re
import struct
import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import train
from data import Tokenizer, UserError, write_problems
from model import FILES, GPT, GPTConfig, KVCache, published, read_safetensors, write_safetensors

SHAPES = [(97, 32, 1, 1, 8), (301, 64, 3, 4, 48), (1000, 128, 4, 4, 128), (13, 7, 2, 5, 35), (50257, 1024, 12, 12, 768)]  # the last: GPT-2 small
MUTATIONS = int(os.environ.get("MUTATIONS", 300))  # of a safetensors file


def small_model(vocab_size=50, block_size=24, n_layer=2, n_head=2, n_embd=16, seed=1):
    return GPT(GPTConfig(vocab_size, block_size, n_layer, n_head, n_embd)).initialise(seed).double().eval()


def shaken_model(shape):
    """A model of larger weights than at the start, so that every term counts; biases and norms too."""
    model, generator = GPT(GPTConfig(*shape)), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.uniform_(-1, 1, generator=generator).mul_(math.sqrt(p.shape[0]) / p.shape[0] if name.startswith("h.") and p.dim() == 2 else 0.3)
            if p.dim() == 1 and name.endswith("weight"):
                p += 1
    return model.eval()


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="transformers is the oracle here: pip install transformers")


# ---- the model ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_gradients_are_those_of_transformers(shape, tmp_path, transformers):
    model = shaken_model(shape)
    model.save(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = torch.randint(shape[0], (2, 8 if shape == SHAPES[-1] else shape[1]), generator=torch.Generator().manual_seed(0))
    for dtype, close in (torch.float32, 1e-4), (torch.float64, 1e-9):
        ours, other = model.to(dtype), theirs.to(dtype)
        ours_logits, their_logits = ours(ids), other(ids).logits
        assert (ours_logits - their_logits).abs().max() <= close * (1 if dtype == torch.float32 else their_logits.abs().max())
        if shape == SHAPES[-1] and dtype == torch.float64:
            continue  # its gradients take gigabytes
        for side, logits in (ours, ours_logits), (other, their_logits):
            side.zero_grad()
            F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        their_grads = {name: p.grad for name, p in other.transformer.named_parameters()}
        for name, p in ours.named_parameters():
            assert (p.grad - their_grads[name]).abs().max() <= close * their_grads[name].abs().max(), (name, dtype)


def test_bfloat16_logits_are_those_of_transformers_within_its_rounding(tmp_path, transformers):
    model = shaken_model(SHAPES[2])
    model.save(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    ids = torch.randint(1000, (3, 100), generator=torch.Generator().manual_seed(0))
    exact = model.double()(ids)
    off = (model.bfloat16()(ids).double() - exact).norm() / exact.norm()
    their_off = (theirs(ids).logits.double() - exact).norm() / exact.norm()
    assert off < 0.02 and off < 1.5 * their_off  # eight bits: 2 ** -8 at each of some layers


def test_greedy_decoding_of_ragged_prompts_is_that_of_generate(tmp_path, transformers):
    model = shaken_model(SHAPES[1])
    model.save(tmp_path)
    model.double()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    rng, T, new, end = random.Random(4), 20, 30, 300
    prompts = [[rng.randrange(end) for _ in range(n)] for n in (20, 1, 7, 13, 2, 19, 11, 5)]
    left = torch.tensor([[end] * (T - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (T - len(p)) + [1] * len(p) for p in prompts])
    expected = theirs.generate(left, attention_mask=mask, max_new_tokens=new, do_sample=False)[:, T:]
    cache, written, lengths = KVCache(model.config, 8, dtype=torch.float64), [], [0] * 8
    feeds = prompts
    for step in range(new):
        counts = [len(feed) for feed in feeds]
        cache.place(list(range(8)), lengths, counts)
        with torch.no_grad():
            written.append(model(torch.tensor([sum(feeds, [])]), torch.tensor(counts).cumsum(0) - 1, cache).argmax(-1))
        feeds, lengths = written[-1][:, None].tolist(), [n + count for n, count in zip(lengths, counts)]
    for ours, row in zip(torch.stack(written, 1).tolist(), expected.tolist()):
        stop = row.index(end) + 1 if end in row else new
        assert ours[:stop] == row[:stop]


def step_of(model, ids):
    """Loss and gradients of a training step."""
    model.zero_grad()
    loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointed_activations_change_no_gradient(dropout):
    model = small_model().train()
    model.config.dropout = dropout
    ids, kept, blocks = torch.randint(50, (3, 20)), [], []
    for model.checkpoint_activations in False, True:
        torch.manual_seed(5)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(model.checkpoint_activations) or t, lambda t: t):
            blocks.append(step_of(model, ids))
    for plain, again in zip(*blocks):
        torch.testing.assert_close(plain, again, rtol=1e-12, atol=1e-14)
    assert kept.count(True) < kept.count(False) / 3  # tensors kept for the backward pass


def test_dropout_is_a_share_of_the_training_and_none_of_the_use():
    model = small_model()
    ids = torch.randint(50, (2, 20))
    model.config.dropout = 0.5
    assert torch.equal(model(ids), model(ids))
    model.train()
    assert not torch.equal(model(ids), model(ids))
    model.config.dropout = 0.0
    assert torch.equal(model(ids), model.eval()(ids))


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_compiled_model_has_the_same_gradients(checkpointed):
    """The graph that torch.compile takes, run without a C++ compiler."""
    model = small_model().train()
    model.checkpoint_activations = checkpointed
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    for T in 20, 13:
        ids = torch.randint(50, (3, T))
        for plain, again in zip(step_of(model, ids), step_of(compiled, ids)):
            torch.testing.assert_close(plain, again, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("few_calls", [False, True], ids=["a call for each run of rows", "few calls"])
def test_ragged_cached_batch_equals_each_row_alone_without_cache(few_calls):
    model = small_model()
    rows = [torch.randint(50, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (24, 3, 11, 17, 24, 20)]
    cache, lengths, draw = KVCache(model.config, len(rows), dtype=torch.float64), [0] * len(rows), random.Random(0)
    cache.few_calls = few_calls
    while any(n < len(row) for n, row in zip(lengths, rows)):
        # some rows go on by 1 to 4 tokens, half of them by one, in any order or in that of the cache, the others wait
        ready = [r for r, row in enumerate(rows) if lengths[r] < len(row)]
        chosen = draw.sample(ready, draw.randint(1, len(ready)))
        chosen = chosen if draw.random() < 0.5 else sorted(chosen)
        feeds = [rows[r][lengths[r]:lengths[r] + draw.choice((1, 1, 1, 2, 3, 4))] for r in chosen]
        counts = [len(feed) for feed in feeds]
        cache.place(chosen, [lengths[r] for r in chosen], counts)
        logits = model(torch.tensor([sum(feeds, [])]), cache=cache)[0]  # (N, vocab_size), of every token
        for r, own in zip(chosen, logits.split(counts)):
            start, lengths[r] = lengths[r], lengths[r] + len(own)
            torch.testing.assert_close(own, model(torch.tensor([rows[r][:lengths[r]]]))[0, start:], rtol=1e-9, atol=1e-9)


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


# ---- folders -----------------------------------------------------------------------------------------------------------

def test_saved_and_opened_again_has_the_same_bytes(tmp_path):
    model = small_model().float()
    model.config.dropout = 0.1
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    model.save(tmp_path / "a")
    GPT.open(tmp_path / "a").save(tmp_path / "b")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    raw = (tmp_path / "a" / "model.safetensors").read_bytes()  # read by hand
    n, = struct.unpack("<Q", raw[:8])
    entry = json.loads(raw[8:8 + n])["transformer.h.0.mlp.c_fc.bias"]
    first, last = entry["data_offsets"]
    assert entry["shape"] == [64] and last - first == 256
    assert torch.equal(torch.tensor(struct.unpack("<64f", raw[8 + n + first:8 + n + last])), model.h[0].mlp.c_fc.bias)
    opened = GPT.open(tmp_path / "a")
    opened.save(tmp_path / "a")  # over the file whose memory map it is
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == raw and opened.wte.weight.sum().isfinite()


def named(model, prefix="transformer."):
    return {prefix + name: p.detach() for name, p in model.named_parameters()}


def shards(folder, name, write, weights, n=3):
    """Write `weights` as n shards with their index."""
    names = list(weights)
    files = {key: name.replace(".", f"-{i % n + 1:05}-of-{n:05}.") for i, key in enumerate(names)}
    for file in set(files.values()):
        write(folder / file, {key: weights[key] for key in names if files[key] == file})
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def save_bin(path, tensors, **how):
    torch.save(tensors, path, **how)


def unaligned(path, tensors):
    """A safetensors file whose tensors stand at odd bytes, as in the published one."""
    write_safetensors(path, tensors)
    raw = path.read_bytes()
    n = int.from_bytes(raw[:8], "little")
    path.write_bytes((n + 1).to_bytes(8, "little") + raw[8:8 + n] + b" " + raw[8 + n:])


FOLDERS = {
    "safetensors": lambda d, m: write_safetensors(d / "model.safetensors", named(m)),
    "no prefix": lambda d, m: write_safetensors(d / "model.safetensors", named(m, "")),
    "unaligned": lambda d, m: unaligned(d / "model.safetensors", named(m)),
    "head and masks": lambda d, m: write_safetensors(d / "model.safetensors", {
        "lm_head.weight": m.wte.weight, **named(m, ""), "h.0.attn.masked_bias": torch.tensor(-1e4),
        "h.0.attn.bias": torch.ones(1, 1, 24, 24).tril(), "h.1.attn.bias": torch.ones(1, 1, 24, 24).tril().bool()}),
    "shards": lambda d, m: shards(d, "model.safetensors", write_safetensors, named(m)),
    "bin": lambda d, m: save_bin(d / "pytorch_model.bin", {**named(m), "lm_head.weight": m.wte.weight, "h.0.attn.bias": torch.ones(24, 24).byte()}),
    "bin of 2019": lambda d, m: save_bin(d / "pytorch_model.bin", named(m, ""), _use_new_zipfile_serialization=False),
    "bin shards": lambda d, m: shards(d, "pytorch_model.bin", save_bin, named(m)),
    "float16": lambda d, m: write_safetensors(d / "model.safetensors", named(m.half())),
    "bfloat16": lambda d, m: unaligned(d / "model.safetensors", named(m.bfloat16())),
    "float64": lambda d, m: write_safetensors(d / "model.safetensors", named(m.double())),
    "bin of float16": lambda d, m: save_bin(d / "pytorch_model.bin", named(m.half())),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_of_any_kind_opens_to_its_weights_in_float32(kind, tmp_path):
    model = small_model().float()
    model.save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    FOLDERS[kind](tmp_path, model)  # this converts the model to what it writes
    opened = GPT.open(tmp_path)
    for (name, p), (_, wanted) in zip(opened.named_parameters(), model.named_parameters(), strict=True):
        assert p.dtype == torch.float32 and torch.equal(p, wanted.float()), name
    assert sum(p.numel() for p in opened.parameters()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}])
def test_a_folder_written_by_transformers_opens_to_the_same_logits(options, tmp_path, transformers):
    config = transformers.GPT2Config(vocab_size=77, n_positions=40, n_embd=24, n_layer=2, n_head=3, bos_token_id=76, eos_token_id=76)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(tmp_path, **options)
    assert (tmp_path / "model.safetensors").exists() == (not options)
    ids = torch.randint(77, (2, 40))
    torch.testing.assert_close(GPT.open(tmp_path)(ids), theirs(ids).logits, rtol=1e-4, atol=1e-5)
    assert GPT.open(tmp_path).config.dropout == 0.1


def test_a_student_goes_to_transformers_is_trained_there_and_comes_back(tmp_path, transformers):
    texts = [" Ann has 3 cats.\n", " How many has Bob?\n", " Bob has <<3+4=7>>7 cats.\n"]
    tokenizer = Tokenizer.learn(texts * 3, 280)
    sequence = [i for text in texts for i in tokenizer.encode(text)] + [tokenizer.end]
    model = GPT(GPTConfig(tokenizer.vocab_size, 90, 2, 2, 32)).initialise(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):  # until it writes the sequence by itself
        step_of(model, torch.tensor([sequence]))
        optimizer.step()
    (tmp_path / "ours").mkdir(), (tmp_path / "theirs").mkdir()
    model.save(tmp_path / "ours"), tokenizer.save(tmp_path / "ours")

    theirs, told = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(told.values()), told
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    prompt = their_tokenizer(texts[0], return_tensors="pt")
    assert prompt["input_ids"][0].tolist() == tokenizer.encode(texts[0])
    written = theirs.generate(**prompt)[0].tolist()  # no flag: it stops where the student does, not after 20 tokens
    assert written == sequence and their_tokenizer.decode(written, skip_special_tokens=True) == "".join(texts)
    line = theirs.generate(**prompt, eos_token_id=[tokenizer.ranks[b"\n"], tokenizer.end])[0].tolist()  # one segment, as infer.py asks for it
    assert line == sequence[:len(tokenizer.encode(texts[0] + texts[1]))]
    long = theirs.generate(**prompt, eos_token_id=None)
    assert long.shape[1] == 90  # the block's end

    theirs.train()
    theirs(torch.tensor([sequence]), labels=torch.tensor([sequence])).loss.backward()
    torch.optim.SGD(theirs.parameters(), lr=0.1).step()
    theirs.eval().save_pretrained(tmp_path / "theirs"), their_tokenizer.save_pretrained(tmp_path / "theirs")
    again, ids = GPT.open(tmp_path / "theirs"), torch.tensor([sequence])
    torch.testing.assert_close(again(ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)
    assert not torch.equal(again.wte.weight, model.wte.weight)
    assert Tokenizer.open(tmp_path / "theirs", again.config.vocab_size).ranks == tokenizer.ranks


def test_a_cropped_model_reads_shorter_sequences_to_the_same_logits(tmp_path):
    model, ids = small_model(), torch.randint(50, (2, 10))
    whole = model(ids)
    model.crop(10)
    assert torch.equal(model(ids), whole) and model.config.block_size == 10
    model.save(tmp_path)
    assert torch.equal(GPT.open(tmp_path).double()(ids), whole)
    with pytest.raises(ValueError, match="positions for 10"):
        model.crop(11)


@pytest.mark.parametrize("spoil, told", [
    (lambda raw: raw[:5], "only 5 bytes"),
    (lambda raw: raw[:-4], "header describes"),
    (lambda raw: raw + b"more", "header describes"),
    (lambda raw: (2 ** 60).to_bytes(8, "little") + raw[8:], "header would end"),
    (lambda raw: raw[:8] + b"}" + raw[9:], "broken safetensors header"),
    (lambda raw: raw.replace(b'"F32"', b'"F33"', 1), "dtype 'F33'"),
    (lambda raw: raw.replace(b'"shape":[64]', b'"shape":[65]', 1), "does not fit its bytes"),
    (lambda raw: raw.replace(b'"shape":[64]', b'"shape":[-4]', 1), "broken shape"),
    (lambda raw: raw.replace(b'"shape":[64]', b'"shape":"64"', 1), "broken shape"),
    (lambda raw: raw.replace(b'"F32"', b'[1,2]', 1), "dtype"),
    (lambda raw: raw.replace(b'_offsets":[0,', b'_offsets":[4,', 1), "does not fit its bytes"),
    (lambda raw: raw.replace(b'_offsets":[0,', b'_offsets":[ ', 1), "broken safetensors header"),
])
def test_a_spoilt_weights_file_is_refused_in_one_line(spoil, told, tmp_path):
    small_model().float().save(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=told) as error:
        list(read_safetensors(path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("field, value, told", [
    ("model_type", "llama", "model_type"), ("n_head", 3, "no multiple"), ("n_embd", None, "whole number"), ("n_head", True, "whole number"),
    ("activation_function", "relu", "activation_function"), ("n_layer", 3, "missing"), ("n_layer", 1, "unexpected tensor"),
    ("vocab_size", 51, "wte.weight is"), ("n_layer", 10 ** 9, "n_layer is 1000000000"), ("n_inner", 17, "n_inner is 17"),
    ("scale_attn_by_inverse_layer_idx", True, "inverse_layer"), ("tie_word_embeddings", False, "tie_word"),
    ("attn_pdrop", 0.7, "attn_pdrop is 0.7"), ("resid_pdrop", "no", "resid_pdrop"), (None, None, "JSON object"), (None, ..., "not a JSON"),
])
def test_a_config_that_does_not_fit_is_refused_in_one_line(field, value, told, tmp_path):
    small_model().float().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    if field:
        config[field] = value
    (tmp_path / "config.json").write_text("[" * 10 ** 5 if value is ... else json.dumps(config if field else [config]))
    with pytest.raises(ValueError, match=told) as error:
        GPT.open(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def with_nan(weights):
    weights["transformer.h.1.mlp.c_fc.bias"][3] = math.nan
    return weights


@pytest.mark.parametrize("change, told", [
    (lambda w: w | {"lm_head.weight": w["transformer.wte.weight"] + 1}, "lm_head.weight is not wte.weight"),
    (lambda w: w | {"wte.weight": w["transformer.wte.weight"]}, "a second tensor 'wte.weight'"),
    (lambda w: w | {"transformer.h.7.ln\n_1": torch.ones(3)}, "unexpected tensor"),
    (lambda w: {k: w[k] for k in list(w)[1:]}, "tensor wte.weight is missing"), (lambda w: {}, "is missing"),
    (lambda w: w | {"transformer.ln_f.bias": torch.ones(16, dtype=torch.int32)}, "ln_f.bias is .* of torch.int32"),
    (lambda w: w | {"transformer.ln_f.bias": torch.ones(2, 8)}, r"ln_f.bias is \(2, 8\)"), (with_nan, "h.1.mlp.c_fc.bias holds NaN"),
])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_weights_that_are_not_this_models_are_refused_in_one_line(change, told, kind, tmp_path):
    model = small_model().float()
    model.save(tmp_path)
    weights = change({name: p.clone() for name, p in named(model).items()})
    if kind == "bin":
        (tmp_path / "model.safetensors").unlink()
        save_bin(tmp_path / "pytorch_model.bin", weights)
    else:
        write_safetensors(tmp_path / "model.safetensors", weights)
    with pytest.raises(ValueError, match=told) as error:
        GPT.open(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("file, content, told", [
    ("pytorch_model.bin", Evil(), "nothing but weights"), ("pytorch_model.bin", b"", "nothing but weights"), ("pytorch_model.bin", [1], "named weights"),
    ("pytorch_model.bin", b"PK\x03\x04 and more", "nothing but weights"), ("model.safetensors.index.json", b"{", "not a JSON"),
    ("model.safetensors.index.json", b'{"weight_map": {"wte.weight": "../model.safetensors"}}', "weight_map"),
    ("model.safetensors.index.json", b'{}', "weight_map"), ("other", b"", "no weights here"),
])
def test_what_is_no_file_of_weights_is_refused_in_one_line_and_not_run(file, content, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_model().float().save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / file).write_bytes(content) if isinstance(content, bytes) else torch.save(content, tmp_path / file)
    with pytest.raises(ValueError, match=told) as error:
        GPT.open(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value) and not Path("ran").exists()


def mutated(raw, rng):
    """A safetensors file with bytes flipped, parts cut out, put in twice or exchanged, or fields of its header changed."""
    n = 8 + int.from_bytes(raw[:8], "little")
    raw, kind = bytearray(raw), rng.randrange(7)
    if kind == 0:  # anywhere
        for _ in range(rng.randint(1, 9)):
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    elif kind == 1:  # in the header
        for _ in range(rng.randint(1, 4)):
            raw[rng.randrange(n)] = rng.randrange(256)
    elif kind == 2:
        del raw[rng.randrange(len(raw)):]
    elif kind == 3:
        a, b = sorted(rng.randrange(n if rng.random() < 0.7 else len(raw)) for _ in range(2))
        raw[a:b] = rng.choice([b"", raw[a:b] * 2, rng.randbytes(b - a)])
    elif kind == 4:
        raw[:8] = rng.choice([0, 1, n - 9, n - 7, len(raw), 2 ** 31, 2 ** 63, 2 ** 64 - 1, rng.randrange(n)]).to_bytes(8, "little")
    else:  # a header that is JSON still
        header = json.loads(raw[8:n])
        name = rng.choice(list(header))
        field = rng.choice(["dtype", "shape", "data_offsets"])
        odd = rng.choice([0, -1, 1, 2 ** 31, 2 ** 63, 10 ** 30, 1.5, True, None, "", "F32", "F16", [], {}, [0], [16, 16], [2 ** 62] * 4, [0, 10 ** 30]])
        if kind == 5:
            header[name][field] = odd
        elif isinstance(header[name].get(field), list) and header[name][field]:
            header[name][field][rng.randrange(len(header[name][field]))] = odd
        else:
            other = rng.choice(list(header))
            header[name], header[other] = header[other], header[name]
        text = json.dumps(header).encode()
        raw[:n] = len(text).to_bytes(8, "little") + text
    return bytes(raw)


def test_a_mutated_weights_file_opens_to_the_right_shapes_or_is_refused_in_one_line(tmp_path):
    model = small_model(vocab_size=11, block_size=5, n_layer=1, n_embd=8).float()
    model.save(tmp_path)
    path, rng = tmp_path / "model.safetensors", random.Random(6)
    raw, refused = path.read_bytes(), 0
    for _ in range(MUTATIONS):
        path.write_bytes(mutated(raw, rng))
        try:
            opened = GPT.open(tmp_path)
        except ValueError as e:
            refused += 1
            assert str(tmp_path) in str(e) and "\n" not in str(e), e
        else:
            assert opened(torch.zeros(1, 5, dtype=torch.long)).shape == (1, 5, 11)
            for (_, p), (name, wanted) in zip(opened.named_parameters(), model.named_parameters(), strict=True):
                assert p.shape == wanted.shape and p.sum().isfinite(), name
    assert MUTATIONS / 2 < refused < MUTATIONS  # flipped bits of a weight are weights


# ---- the published weights ---------------------------------------------------------------------------------------------

class Hub(http.server.BaseHTTPRequestHandler):
    """A hub that sends small files itself and large ones from elsewhere, by redirects; what it does wrong is in server.how."""

    def do_GET(self):
        how, file = self.server.how, self.path.rpartition("/")[2]
        body = self.server.files.get(file)
        self.server.asked.append((file, self.headers["Range"]))
        if body is None or how.get("status"):
            return self.send_error(how.get("status", 404))
        large, first = file.endswith(".safetensors"), self.path.startswith("/openai-community/gpt2/resolve/main/")
        if first and large:
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.server.server_port}/far/{file}")  # "localhost" is not 127.0.0.1
            self.send_header("X-Linked-Etag", f'"{how.get("sha256") or hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Linked-Size", str(len(body) + how.get("longer", 0)))
            return self.end_headers()
        start = int(re.match(r"bytes=(\d+)-", self.headers["Range"])[1]) if self.headers["Range"] and not how.get("no_ranges") else None
        if start is not None and start >= len(body):
            return self.send_error(416)
        self.send_response(200 if start is None else 206)
        if large or not how.get("no_length"):
            self.send_header("Content-Length", str(len(body) - (start or 0)))
        if start is not None:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("ETag", '"%064d"' % 7 if large else f'W/"{how.get("sha1") or hashlib.sha1(b"blob %d" % len(body) + bytes(1) + body).hexdigest()}"')
        self.end_headers()
        cut = how["cuts"].pop(0) if large and how.get("cuts") else len(body)
        self.wfile.write(body[start or 0:(start or 0) + cut])
        self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with a tiny "gpt2": server.how changes what it does, server.asked is what it was asked; the cache is tmp_path/home."""
    folder = tmp_path / "hub"
    folder.mkdir()
    tokenizer = Tokenizer.learn([" Ann has 3 cats.\n"] * 3, 280)
    GPT(GPTConfig(tokenizer.vocab_size, 64, 2, 2, 16)).initialise(0).save(folder), tokenizer.save(folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.how, server.asked, server.files = {}, [], {file: (folder / file).read_bytes() for file in FILES}
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    for proxy in "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY":
        monkeypatch.delenv(proxy, raising=False)
    yield server
    server.shutdown(), thread.join(), server.server_close()


def assert_whole(folder, server):
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert all((folder / file).read_bytes() == server.files[file] for file in FILES)


@pytest.mark.parametrize("how", [{}, {"cuts": [1, 5000, 3]}, {"cuts": [9000], "no_ranges": True}, {"no_length": True}])
def test_published_weights_are_downloaded_once_in_spite_of_breaks(how, hub):
    hub.how.update(copy.deepcopy(how))  # the hub takes from its cuts
    folder = published("gpt2")
    assert_whole(folder, hub)
    ranges = [asked for file, asked in hub.asked if file == "model.safetensors"]
    if "cuts" in how and "no_ranges" not in how:
        assert ranges[-1] == f"bytes={1 + 5000 - 1 + 3 - 1 - 1}-"  # each try asks for the last byte once more
    hub.how["status"] = 500
    assert published("gpt2") == folder and GPT.open(folder).config.n_layer == 2


def test_a_download_that_ends_early_goes_on_where_it_was(hub, tmp_path):
    hub.how["cuts"] = [4000, 0]
    with pytest.raises(ValueError, match=r"the connection was closed; try again.* put config.json, .* into .*home/hub") as error:
        published("gpt2")
    assert "\n" not in str(error.value)
    part, = (tmp_path / "home").rglob("*.part")
    assert part.stat().st_size in (3999, 4000)
    assert_whole(published("gpt2"), hub)
    assert hub.asked[-1][1] in ("bytes=3999-", "bytes=3998-")


def test_a_part_that_is_whole_already_is_taken_and_one_of_something_else_replaced(hub, tmp_path):
    assert_whole(folder := published("gpt2"), hub)
    (folder / "model.safetensors").rename(part := folder / "model.safetensors.part")
    hub.asked.clear()
    assert_whole(published("gpt2"), hub)
    assert hub.asked == [("model.safetensors", f"bytes={len(hub.files['model.safetensors']) - 1}-")] * 2  # the hub, and where it sends us
    for content, told in (bytes(10 ** 6), "Range Not Satisfiable"), (bytes(100), "deleted"):
        (folder / "model.safetensors").unlink(missing_ok=True)
        part.write_bytes(content)
        with pytest.raises(ValueError, match=told):
            published("gpt2")
        assert_whole(published("gpt2"), hub)


@pytest.mark.parametrize("how, file", [({"sha256": "0" * 64}, "model.safetensors"), ({"longer": 1}, "model.safetensors"), ({"sha1": "0" * 40}, "config.json")])
def test_what_is_not_what_was_announced_is_deleted(how, file, hub, tmp_path):
    hub.how.update(how)
    with pytest.raises(ValueError, match=f"{file}: .* deleted"):
        published("gpt2")
    assert not list((tmp_path / "home").rglob(file + "*"))
    hub.how.clear()
    assert_whole(published("gpt2"), hub)


@pytest.mark.parametrize("how", ["404", "gone"])
def test_without_the_hub_one_line_says_what_to_put_where(how, hub, tmp_path, monkeypatch):
    hub.how["status"] = 404
    if how == "gone":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(ValueError, match="Not Found|refused") as error:
        published("gpt2", tmp_path / "cache")
    folder = Path(str(error.value).rpartition(" into ")[2])
    assert "\n" not in str(error.value) and folder.is_relative_to(tmp_path / "cache")
    for file in FILES:
        (folder / file).write_bytes(hub.files[file])
    assert published("gpt2", tmp_path / "cache") == folder


@pytest.mark.parametrize("repository", ["openai-community--gpt2", "gpt2"])
def test_what_transformers_downloaded_is_found(repository, hub, tmp_path):
    folder = tmp_path / f"home/hub/models--{repository}/snapshots/607a30d783dfa663caf39e06633721c8d4cfcd7e"
    folder.mkdir(parents=True)
    for file in FILES:
        (folder / file).write_bytes(hub.files[file])
    assert published("gpt2") == folder and not hub.asked


def test_train_starts_from_published_weights_by_name(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    problem = {"problem": "Ann has 3 cats. How many?", "steps": [{"question": "How many?", "solution": "3."}], "answer": "3"}
    for split in "train", "valid":
        write_problems(f"{split}.jsonl", [problem] * 4)
    flags = ["--role", "solver", "--train", "train.jsonl", "--valid", "valid.jsonl", "--steps", "1", "--device", "cpu"]
    train.main([*flags, "--init", "gpt2", "--cache", "cache", "--block-size", "60", "--dropout", "0.1"])
    assert "adamw" in capsys.readouterr().err
    settings = torch.load("runs/solver/last/trainer.pt", weights_only=True)["settings"]
    assert (settings["lr"], settings["text_weight"], settings["recite"]) == (5e-5, 0, 0)  # gentle, and nothing beside the method
    student = GPT.open("runs/solver")
    assert (student.config.block_size, student.config.dropout, student.config.n_layer) == (60, 0.1, 2)
    assert (student.wte.weight - GPT.open(published("gpt2", "cache")).wte.weight).abs().max() < 1e-3  # one step from it
    for wrong, told in (["--init", "gpt3"], "no such folder, nor one of gpt2, "), (["--init", "gpt2", "--block-size", "65"], "positions for 64"), \
            (["--init", "runs/solver", "--cache", "cache"], "--cache goes with --init gpt2"), (["--init", "gpt2", "--dropout", "1"], "--dropout"):
        with pytest.raises(UserError, match=told) as error:
            train.main([*flags, "--out", "b", "--force", *(["--cache", "cache"] if "gpt2" in wrong else []), *wrong])
        assert error.value.status == 2
    config = json.loads(Path("runs/solver/config.json").read_text())
    Path("runs/solver/vocab.json").unlink()
    with pytest.raises(UserError, match="vocab.json: No such file"):
        train.main([*flags, "--out", "b", "--init", "runs/solver"])
    Tokenizer.learn([], 257).save("runs/solver")
    with pytest.raises(UserError, match=f"257 tokens, the model's config.json says {config['vocab_size']}"):
        train.main([*flags, "--out", "b", "--init", "runs/solver"])
