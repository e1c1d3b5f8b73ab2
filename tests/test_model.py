"""model.py against transformers' GPT-2, float64, rows alone without a cache, and a local hub that fails."""
import hashlib
import http.server
import io
import json
import math
import os
import random
import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import model as model_py
import train
from data import Tokenizer, write_problems
from model import (GPT, PUBLISHED_FILES, GPTConfig, KVCache, download_published, init_weights,
                   prepack_matrices, write_safetensors)

GPT2_SMALL = (50257, 1024, 12, 12, 768)  # vocab_size, block_size, n_layer, n_head, n_embd
SHAPES = [(97, 32, 1, 1, 8), (301, 64, 3, 4, 48), (1000, 128, 4, 4, 128), (13, 7, 2, 5, 35),
          (300, 40, 2, 2, 32, 0.0, "none"), GPT2_SMALL]


def small_model(vocab_size=50, block_size=24, n_layer=2, n_head=2, n_embd=16):
    return init_weights(GPT(GPTConfig(vocab_size, block_size, n_layer, n_head, n_embd)), 1).eval()


def random_model(shape):
    """A model of larger weights than at the start, so that every term counts; biases and norms too."""
    model, generator = GPT(GPTConfig(*shape)), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.uniform_(-1, 1, generator=generator)
            p *= p.shape[0] ** -0.5 if name.startswith("h.") and p.dim() == 2 else 0.3
            if p.dim() == 1 and name.endswith("weight"):
                p += 1
    return model.eval()


def random_ids(vocab_size, *shape):
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(0))


def refusal(folder, run, *args):
    """What run(*args) says: a ValueError of one line that names `folder`."""
    with pytest.raises(ValueError) as error:
        run(*args)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


# ---- the model -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_gradients_are_those_of_transformers(shape, tmp_path, transformers):
    model = random_model(shape)
    model.save_pretrained(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = random_ids(shape[0], 2, 8 if shape == GPT2_SMALL else shape[1])
    for dtype, tolerance in (torch.float32, 1e-4), (torch.float64, 1e-9):
        model.to(dtype), theirs.to(dtype)
        logits, their_logits = model(ids), theirs(ids).logits
        scale = 1 if dtype == torch.float32 else their_logits.abs().max()
        assert (logits - their_logits).abs().max() <= tolerance * scale
        if shape == GPT2_SMALL:
            break  # the rest takes gigabytes
        for found in logits, their_logits:
            F.cross_entropy(found[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        their_grads = {name: p.grad for name, p in theirs.transformer.named_parameters()}
        for name, p in model.named_parameters():
            assert (p.grad - their_grads[name]).abs().max() <= tolerance * their_grads[name].abs().max(), name
        model.zero_grad(), theirs.zero_grad()


def test_bfloat16_logits_are_as_close_to_the_exact_ones_as_those_of_transformers(tmp_path, transformers):
    model, ids = random_model(SHAPES[2]), random_ids(1000, 3, 100)
    model.save_pretrained(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    exact = model.double()(ids)
    error, their_error = ((logits.double() - exact).norm() / exact.norm()
                          for logits in (model.bfloat16()(ids), theirs(ids).logits))
    assert error < 0.02 and error < 1.5 * their_error


def loss_and_gradients(model, ids):
    model.zero_grad()
    loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters())]


def test_checkpointed_activations_change_no_gradient_and_keep_fewer_tensors():
    model, ids, kept, found = small_model().double().train(), random_ids(50, 3, 20), [], []
    model.config.dropout = 0.3
    for model.checkpoint_activations in False, True:
        torch.manual_seed(5)
        count = lambda tensor: kept.append(model.checkpoint_activations) or tensor
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            found.append(loss_and_gradients(model, ids))
    for plain, again in zip(*found):
        torch.testing.assert_close(plain, again, rtol=1e-12, atol=1e-14)
    assert kept.count(True) < kept.count(False) / 3


def test_dropout_acts_in_training_alone():
    model, ids = small_model(), random_ids(50, 2, 20)
    without = model(ids)
    model.config.dropout = 0.5
    assert torch.equal(model(ids), without) and not torch.equal(model.train()(ids), without)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_compiled_model_has_the_same_gradients(checkpointed):
    """The graph that torch.compile takes, run without a C++ compiler."""
    model = small_model(n_layer=1).double().train()
    model.checkpoint_activations = checkpointed
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    for T in 20, 13:
        for plain, again in zip(*(loss_and_gradients(m, random_ids(50, 3, T)) for m in (model, compiled))):
            torch.testing.assert_close(plain, again, rtol=1e-10, atol=1e-12)


def test_a_cropped_model_has_the_same_logits_also_when_it_is_opened_again(tmp_path):
    model, ids = small_model(), random_ids(50, 2, 10)
    model.config.dropout, model.config.gelu = 0.1, "none"
    whole = model(ids)
    model.crop_block_size(10)
    assert torch.equal(model(ids), whole) and model.config.block_size == 10
    model.save_pretrained(tmp_path)
    opened = GPT.from_pretrained(tmp_path)
    assert torch.equal(opened(ids), whole) and opened.config == model.config
    with pytest.raises(ValueError, match="positions for 10"):
        model.crop_block_size(11)


# ---- the key-value cache, and prepacked matrices ---------------------------------------------------------

@pytest.mark.parametrize("few_calls", [False, True], ids=["calls as on a CPU", "calls as on a GPU"])
def test_rows_of_a_ragged_cached_batch_equal_each_row_alone_without_cache(few_calls):
    model, draw = small_model().double(), random.Random(0)
    rows = [random_ids(50, n).tolist() for n in (24, 3, 11, 17, 24, 20)]
    cache, lengths = KVCache(model.config, len(rows), dtype=torch.float64), [0] * len(rows)
    cache.few_calls = few_calls
    while any(n < len(row) for n, row in zip(lengths, rows)):
        # some rows go on by 1 to 4 tokens, in any order or that of the cache; the others wait
        ready = [r for r, row in enumerate(rows) if lengths[r] < len(row)]
        chosen = draw.sample(ready, draw.randint(1, len(ready)))
        chosen = chosen if draw.random() < 0.5 else sorted(chosen)
        new = [rows[r][lengths[r]:lengths[r] + draw.choice((1, 1, 1, 2, 3, 4))] for r in chosen]
        counts = [len(ids) for ids in new]
        cache.place(chosen, [lengths[r] for r in chosen], counts)
        logits = model(torch.tensor([sum(new, [])]), cache=cache)[0]  # (N, vocab_size), of every token
        for r, own in zip(chosen, logits.split(counts)):
            start, lengths[r] = lengths[r], lengths[r] + len(own)
            alone = model(torch.tensor([rows[r][:lengths[r]]]))[0, start:]
            torch.testing.assert_close(own, alone, rtol=1e-9, atol=1e-9)


def test_prepacked_matrices_give_the_same_logits():
    model, ids = init_weights(GPT(GPTConfig(600, 32, 2, 8, 512)), 5).eval(), random_ids(600, 3, 32)
    with torch.inference_mode():
        plain = model(ids)
        torch.testing.assert_close(prepack_matrices(model)(ids), plain, rtol=1e-4, atol=1e-4)
        other = small_model().bfloat16()
        assert prepack_matrices(other) is other and other.h[0].mlp.c_fc.weight is not None


# ---- folders ---------------------------------------------------------------------------------------------

def named(model, prefix="transformer."):
    return {prefix + name: p.detach() for name, p in model.named_parameters()}


def write_weights(path, weights, **options):
    if path.suffix == ".bin":
        torch.save(weights, path, **options)
    else:
        write_safetensors(path, weights)


MASKS = {"h.0.attn.masked_bias": torch.tensor(-1e4), "h.0.attn.bias": torch.ones(1, 1, 24, 24).tril(),
         "h.1.attn.bias": torch.ones(1, 1, 24, 24).tril().bool()}


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin", "pytorch_model.bin of 2019"])
def test_published_files_of_any_dtype_open_to_their_weights_in_float32(kind, dtype, mapped, tmp_path):
    """The published files have no prefix, masks and head beside the weights, and tensors at odd bytes."""
    model, path = small_model(), tmp_path / kind.split()[0]
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    weights = {**named(model.to(dtype), ""), "lm_head.weight": model.wte.weight.detach(), **MASKS}
    write_weights(path, weights, _use_new_zipfile_serialization="2019" not in kind)
    if path.suffix == ".safetensors":
        raw = path.read_bytes()
        n = int.from_bytes(raw[:8], "little")
        path.write_bytes((n + 1).to_bytes(8, "little") + raw[8:8 + n] + b" " + raw[8 + n:])
    opened = GPT.from_pretrained(tmp_path, mapped)
    for (name, p), (_, wanted) in zip(opened.named_parameters(), model.named_parameters(), strict=True):
        assert p.dtype == torch.float32 and torch.equal(p, wanted.float()), name


def test_a_student_goes_to_transformers_is_trained_there_and_comes_back(tmp_path, transformers):
    texts = [" Ann has 3 cats.\n", " How many has Bob?\n", " Bob has <<3+4=7>>7 cats.\n"]
    tokenizer = Tokenizer.train(texts * 3, 280)
    sequence = [i for text in texts for i in tokenizer.encode(text)] + [tokenizer.end]
    ids = torch.tensor([sequence])
    model = init_weights(GPT(GPTConfig(tokenizer.vocab_size, 90, 2, 2, 32)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):  # until it writes the sequence by itself
        loss_and_gradients(model, ids)
        optimizer.step()
    model.config.dropout = 0.1
    model.save_pretrained(tmp_path), tokenizer.save_pretrained(tmp_path)

    theirs, problems = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(problems.values()), problems
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    prompt = their_tokenizer(texts[0], return_tensors="pt")
    written = theirs.generate(**prompt)[0].tolist()  # without a flag it stops where the student does
    assert written == sequence and their_tokenizer.decode(written, skip_special_tokens=True) == "".join(texts)
    assert theirs.generate(**prompt, eos_token_id=None).shape[1] == 90  # the block's end

    theirs.train()
    theirs(ids, labels=ids).loss.backward()
    torch.optim.SGD(theirs.parameters(), lr=0.1).step()
    theirs.eval().save_pretrained(tmp_path / "back"), their_tokenizer.save_pretrained(tmp_path / "back")
    back = GPT.from_pretrained(tmp_path / "back")
    torch.testing.assert_close(back(ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)
    assert back.config == model.config and not torch.equal(back.wte.weight, model.wte.weight)
    assert Tokenizer.from_pretrained(tmp_path / "back", back.config.vocab_size).ranks == tokenizer.ranks


# ---- faulty files ----------------------------------------------------------------------------------------

class Evil:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def saved(content):
    """What torch.save writes."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def replaced(old, new):
    return lambda raw: raw.replace(old, new, 1)


def changed(**fields):
    return lambda raw: json.dumps(json.loads(raw) | fields).encode()


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4665\nsize 548105171\n"
CORRUPT = "model.safetensors: truncated or corrupt"
FAULTS = {  # {file: [(its content, or a function of what it was, what is said about it), ...]}
    "model.safetensors": [
        (lambda raw: raw[:5], CORRUPT + ": 5 bytes"), (lambda raw: raw[:-4], CORRUPT),
        (lambda raw: raw + b"more", CORRUPT), (lambda raw: raw[:8] + b"}" + raw[9:], CORRUPT),
        (lambda raw: (2 ** 60).to_bytes(8, "little") + raw[8:], CORRUPT),
        (replaced(b'"shape":[64]', b'"shape":[65]'), CORRUPT),
        (replaced(b'"shape":[64]', b'"shape":null'), CORRUPT),
        (replaced(b'_offsets":[0,', b'_offsets":[4,'), CORRUPT),
        (replaced(b'"F32"', b'"F33"'), "model.safetensors: tensor 'transformer.wte.weight' has dtype 'F33'"),
        (LFS_POINTER, "model.safetensors: a Git LFS pointer")],
    "config.json": [
        (changed(model_type="llama"), "model_type"), (changed(n_head=3), "multiple"),
        (changed(n_embd=None), "whole number"), (changed(activation_function="relu"), "activation_function"),
        (changed(n_layer=3), "missing"), (changed(n_layer=10 ** 9), "n_layer"),
        (changed(vocab_size=51), "wte.weight is"), (changed(n_inner=17), "n_inner is 17"),
        (changed(attn_pdrop=0.7), "is 0.7"), (changed(tie_word_embeddings=False), "tie_word"),
        (changed(scale_attn_by_inverse_layer_idx=True), "inverse_layer"), (b"[1]", "not a JSON object")],
    "pytorch_model.bin": [
        (saved(Evil()), "nothing but weights"), (b"", "nothing but weights"), (saved([1]), "named weights"),
        (LFS_POINTER, "a Git LFS pointer")],
    "model.safetensors.index.json": [(b"{}", "shards are not read")],
}


@pytest.mark.parametrize("file, content, message", [
    (file, *fault) for file, faults in FAULTS.items() for fault in faults])
def test_a_faulty_file_is_refused_in_one_line_and_not_run(file, content, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_model().save_pretrained(tmp_path)
    path = tmp_path / file
    if not path.exists():
        (tmp_path / "model.safetensors").unlink()
    path.write_bytes(content if isinstance(content, bytes) else content(path.read_bytes()))
    assert message in refusal(tmp_path, GPT.from_pretrained, tmp_path)
    assert not Path("ran").exists()


@pytest.mark.parametrize("change, message", [
    (lambda w: w | {"lm_head.weight": w["transformer.wte.weight"] + 1}, "lm_head.weight is not wte.weight"),
    (lambda w: w | {"wte.weight": w["transformer.wte.weight"]}, "a second tensor 'wte.weight'"),
    (lambda w: w | {"transformer.h.7.ln\n_1": torch.ones(3)}, "unexpected tensor"),
    (lambda w: {k: w[k] for k in list(w)[1:]}, "tensor wte.weight is missing"), (lambda w: {}, "is missing"),
    (lambda w: w | {"transformer.ln_f.bias": torch.ones(16).byte()}, "ln_f.bias is (16,) of torch.uint8"),
    (lambda w: w | {"transformer.ln_f.bias": torch.ones(2, 8)}, "ln_f.bias is (2, 8)"),
    (lambda w: w | {"transformer.h.1.mlp.c_fc.bias": torch.full((64,), math.nan)}, "c_fc.bias holds NaN"),
])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_weights_that_are_not_this_models_are_refused_in_one_line(change, message, file, tmp_path):
    model = small_model()
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    write_weights(tmp_path / file, change(named(model)))
    assert message in refusal(tmp_path, GPT.from_pretrained, tmp_path)


# ---- the published weights -------------------------------------------------------------------------------

COMMIT = "607a30d783dfa663caf39e06633721c8d4cfcd7e"


class Hub(http.server.BaseHTTPRequestHandler):
    """Sends small files itself and large ones from elsewhere. server.faults says what it does wrong."""

    def do_GET(self):
        faults, file = self.server.faults, self.path.rpartition("/")[2]
        self.server.requests.append((self.command, file))
        body, large = self.server.files.get(file), file.endswith(".safetensors")
        if body is None or faults.get("statuses"):
            return self.send_error(faults["statuses"].pop(0) if faults.get("statuses") else 404)
        git_sha1 = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
        if large and not self.path.startswith("/far/"):
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.server.server_port}/far/{file}")
            self.send_header("X-Linked-ETag", f'"{faults.get("sha256") or hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Linked-Size", str(len(body) + faults.get("longer", 0)))
        else:
            self.send_response(200)
            self.send_header("ETag", '"%064d"' % 7 if large else f'W/"{faults.get("sha1") or git_sha1}"')
            if large or not faults.get("no_length"):
                self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET" and (not large or self.path.startswith("/far/")):
            self.wfile.write(body[:faults.pop("cut", None)] if large else body)

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with a tiny "gpt2": server.faults changes what it does, server.requests is what it was asked."""
    folder = tmp_path / "hub"
    folder.mkdir()
    tokenizer = Tokenizer.train([" Ann has 3 cats.\n"] * 3, 280)
    init_weights(GPT(GPTConfig(tokenizer.vocab_size, 64, 2, 2, 16))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.faults, server.requests = {}, []
    server.files = {file: (folder / file).read_bytes() for file in PUBLISHED_FILES}
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    for variable in "NO_PROXY", "no_proxy":
        monkeypatch.setenv(variable, "127.0.0.1,localhost")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setattr(model_py, "RETRIES", model_py.RETRIES.new(backoff_factor=0))
    yield server
    server.shutdown(), thread.join(), server.server_close()


@pytest.mark.parametrize("faults, message", [
    ({}, None), ({"no_length": True}, None), ({"statuses": [503, 429]}, None),
    ({"cut": 4000}, "4000 bytes"), ({"sha256": "0" * 64}, "hash"), ({"longer": 1}, "announced size"),
    ({"sha1": "0" * 40}, "config.json"), ({"statuses": [500] * 9}, "500"), ({"statuses": [404]}, "404"),
])
def test_files_are_downloaded_whole_and_once_however_the_hub_fails(faults, message, hub, tmp_path):
    hub.faults.update(faults)
    cache = tmp_path / "cache"
    if message:
        told = refusal(cache, download_published, "gpt2", cache)
        assert message in told and "try again" in told
        for path in cache.rglob("snapshots/*/*"):
            assert path.read_bytes() == hub.files[path.name]
        hub.faults.clear()
    folder = download_published("gpt2", cache)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == hub.files
    hub.requests.clear()
    assert download_published("gpt2", cache) == folder and not hub.requests


def test_without_the_hub_one_line_says_what_to_put_where(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    told = refusal(tmp_path / "cache", download_published, "gpt2", tmp_path / "cache")
    assert "refused" in told and "put config.json, vocab.json, " in told
    older = tmp_path / "home" / "hub" / "models--gpt2" / "snapshots" / COMMIT  # as transformers once named it
    for folder, cache in (Path(told.rpartition(" into ")[2]), tmp_path / "cache"), (older, None):
        folder.mkdir(parents=True)
        for file, content in hub.files.items():
            (folder / file).write_bytes(content)
        assert download_published("gpt2", cache) == folder


def test_hugging_faces_library_finds_our_download_and_we_find_its(hub, tmp_path):
    hf_hub_download = pytest.importorskip("huggingface_hub").hf_hub_download
    theirs = {"repo_id": "openai-community/gpt2", "endpoint": os.environ["HF_ENDPOINT"]}
    folder = download_published("gpt2", tmp_path / "ours")
    for options in {}, {"local_files_only": True}:
        hub.requests.clear()
        for file in PUBLISHED_FILES:
            path = hf_hub_download(filename=file, cache_dir=tmp_path / "ours", **theirs, **options)
            assert Path(path) == folder / file
        assert not {("GET", file) for file in PUBLISHED_FILES} & set(hub.requests), hub.requests
    for file in PUBLISHED_FILES:
        path = hf_hub_download(filename=file, cache_dir=tmp_path / "theirs", **theirs)
    hub.requests.clear()
    assert download_published("gpt2", tmp_path / "theirs") == Path(path).parent and not hub.requests


def test_train_starts_from_published_weights_by_name(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    steps = [{"question": "How many?", "solution": "3."}]
    for file in "train.jsonl", "valid.jsonl":
        write_problems(file, [{"problem": "Ann has 3 cats. How many?", "steps": steps, "answer": "3"}] * 4)
    train.main(["--role", "solver", "--train", "train.jsonl", "--valid", "valid.jsonl", "--steps", "1",
                "--device", "cpu", "--init", "gpt2", "--block-size", "60", "--dropout", "0.1"])
    student, published = GPT.from_pretrained("runs/solver"), GPT.from_pretrained(download_published("gpt2"))
    assert (student.config.block_size, student.config.dropout, student.config.n_layer) == (60, 0.1, 2)
    assert (student.wte.weight - published.wte.weight).abs().max() < 1e-3  # a step of fine-tuning away
