"""What the model learned. Prints the tables of MODEL.md.

    evaluate.py MODEL.bin TEXT loss [BYTES [OFFSET]]    loss by position under each cache policy
    evaluate.py MODEL.bin TEXT needle [CASES]           retrieval by distance, under each policy
    evaluate.py MODEL.bin TEXT grid [CASES]             retrieval by depth and length, full cache and sinks + window
    evaluate.py MODEL.bin TEXT sinks                    attention that each head pays to the first token
    evaluate.py MODEL.bin TEXT heads [CASES]            retrieval with some KV heads streaming, the others full

TEXT is what the losses are measured on, and what needles are planted in. --tail 0.05 uses only its last twentieth: the
part of the training file that train.py keeps for validation. --window 128 --sinks 4 are the streaming policy's sizes. --far adds lengths up to 7,000 to the grid.

Policies, for each KV head:
    full      every token before
    window    the last --window tokens, the query's own included
    sinks     these and the first --sinks tokens, with positions inside the cache: sinks are scored as if they stood
              just before the window, that is with the query rotated at min(i, sinks + window - 1)

A needle is <abcdefghijkl>, twelve different random letters (with --repeats, not always different), planted in text;
<abc is asked at the end. `exact n`: the share of
cases in which the next n bytes, greedily continued, are all right; `byte`: the share of right ones among the nine
letters, given those before. Depth 0 % plants at the beginning, 100 % just before the question; the length is that of
everything the model has read, BOS and question included.

A hybrid has no policies: `loss`, `needle` and `grid` show it as it is, also far beyond the length it was trained at.
Needs train.py beside it, and for hybrids its kernels, compiled."""
import argparse
import math

import numpy as np
import torch
import torch.nn.functional as F

from train import BOS, CUE, HEAD_DIM, HEADS, KV_HEADS, LAYERS, LETTERS, Model, framed, rotate

GROUP = HEADS // KV_HEADS
FULL, WINDOW, SINKS, HYBRID = 'full', 'window', 'sinks', 'hybrid'
LETTERS_IN_PHRASE = 12
ASKED = LETTERS_IN_PHRASE - CUE
EXACT = (4, 6, 8, 9)
FAR = (1500, 2000, 4000, 7000)     # distances and lengths beyond what a model was trained at


def everywhere(policy):
    """that policy for every KV head of every layer"""
    return [[policy] * KV_HEADS for _ in range(LAYERS)]


def run(model, tokens, policies, window, sinks, first_token=None):
    """Logits [B,T,256] with policies[layer][kv head]. Adds to first_token [LAYERS,HEADS] the mean attention weight that
    positions from 64 on give to token 0."""
    if not model.llama():
        return model(tokens)
    B, T = tokens.shape
    positions = torch.arange(T)
    x = model.emb(tokens)
    for layer, block in enumerate(model.blocks):
        q, k, v = block.qkv(x)
        sink_q = rotate(q, positions.clamp(max=sinks + window - 1)).transpose(1, 2)     # [B,H,T,D]
        q, k, v = rotate(q, positions).transpose(1, 2), rotate(k, positions).transpose(1, 2), v.transpose(1, 2)
        out = torch.empty(B, HEADS, T, HEAD_DIM)
        for g in range(KV_HEADS):
            policy, heads = policies[layer][g], slice(g * GROUP, (g + 1) * GROUP)
            for a in range(0, T, 512):                          # a slice of queries at a time, to save memory
                i, j = positions[a:a + 512, None], positions[None, :a + 512]
                keys, rows = k[:, g, None, :a + 512], slice(a, a + 512)
                s = q[:, heads, rows] @ keys.transpose(2, 3)
                visible = j <= i
                if policy != FULL:
                    near = j > i - window
                    visible = visible & ((near | (j < sinks)) if policy == SINKS else near)
                if policy == SINKS:
                    s[..., :sinks] = sink_q[:, heads, rows] @ keys[:, :, :sinks].transpose(2, 3)
                p = (s / math.sqrt(HEAD_DIM)).masked_fill(~visible, -math.inf).softmax(-1)
                if first_token is not None:
                    first_token[layer, heads] += p[:, :, max(0, 64 - a):, 0].sum(2).mean(0) / (T - 64)
                out[:, heads, rows] = p @ v[:, g, None, :a + 512]
        x = block.rest(x, out.transpose(1, 2))
    return model.norm(x) @ model.emb.weight.t()


def names(model, *of_llama):
    return of_llama if model.llama() else (HYBRID,)


def tensor(rows):
    return torch.from_numpy(np.stack(rows).astype(np.int64))


def needle_prompt(text, length, depth=None, distance=None, case=0, repeats=False):
    """BOS + text with a needle + question, `length` bytes, and the nine answer bytes after them. The needle is planted at
    a depth in [0, 1], or so that `distance` bytes lie between its first byte and the question's."""
    rng = np.random.default_rng(1000 + case)
    phrase = framed(rng.choice(LETTERS, LETTERS_IN_PHRASE, replace=repeats))
    question = phrase[:1 + CUE]
    filler = length - 1 - len(phrase) - len(question)
    off = int(rng.integers(0, len(text) - filler))
    filler = text[off:off + filler]
    at = round(depth * len(filler)) if distance is None else len(filler) + len(phrase) - distance
    return np.concatenate([[BOS], filler[:at], phrase, filler[at:], question, phrase[1 + CUE:1 + CUE + ASKED]])


def needle_prompts(text, opt, cases, length, **where):
    return [needle_prompt(text, length, case=c, repeats=opt.repeats, **where) for c in range(cases)]


def retrieval(model, opt, prompts, policies):
    """{'byte': share of right bytes, n: share of cases with the first n all right}"""
    x = tensor(prompts)
    right = []
    for part in x.split(8):
        logits = run(model, part[:, :-1], policies, opt.window, opt.sinks)
        right.append(logits[:, -ASKED:].argmax(-1) == part[:, -ASKED:])
    right = torch.cat(right)
    return {'byte': right.float().mean().item(), **{n: right[:, :n].all(1).float().mean().item() for n in EXACT}}


def show_loss(model, text, opt):
    n, off = int(opt.number or 3072), opt.offset
    n = min(n, len(text) - off)
    x = tensor([np.concatenate([[BOS], text[off:off + n]])])
    sizes = 'window %d, %d sinks; ' % (opt.window, opt.sinks) if model.llama() else ''
    print('nats a byte by blocks of 256 bytes; %s%d bytes' % (sizes, n))
    for name in names(model, FULL, WINDOW, SINKS):
        logits = run(model, x[:, :-1], everywhere(name), opt.window, opt.sinks)
        ce = F.cross_entropy(logits[0], x[0, 1:], reduction='none')
        blocks = ' '.join('%.2f' % ce[a:a + 256].mean() for a in range(0, n, 256))
        print('%-7s mean %.3f | first 1024: %.3f | from 128 to 1024: %.3f | %s'
              % (name, ce.mean(), ce[:1024].mean(), ce[128:1024].mean(), blocks))


def show_needle(model, text, opt):
    cases = int(opt.number or 40)
    print('distance from needle to question; %d cases each' % cases)
    for name in names(model, FULL, WINDOW, SINKS):
        for distance in (60, 120, 200, 350, 500, 650, 800, 900, 980) + FAR * (name == HYBRID):
            prompts = needle_prompts(text, opt, cases, max(300, distance + 24), distance=distance)
            r = retrieval(model, opt, prompts, everywhere(name))
            print('%-7s %4d  byte %.3f  ' % (name, distance, r['byte']),
                  '  '.join('exact %d: %.3f' % (n, r[n]) for n in EXACT))


def show_grid(model, text, opt):
    cases = int(opt.number or 40)
    lengths, depths = (256, 448, 640, 896) + FAR * opt.far, (0, 0.25, 0.5, 0.75, 1)
    for name in names(model, FULL, SINKS):
        cells = [[retrieval(model, opt, needle_prompts(text, opt, cases, n, depth=d), everywhere(name)) for d in depths]
                 for n in lengths]
        for count in EXACT:
            mean = np.mean([[r[count] for r in row] for row in cells])
            print('%s, exact %d, %d cases a cell: mean %.3f' % (name, count, cases, mean))
            print('  length ' + ''.join('%6d %%' % (100 * d) for d in depths))
            for n, row in zip(lengths, cells):
                print('  %6d ' % n + ''.join('%8.3f' % r[count] for r in row))


def show_sinks(model, text, opt):
    for name in (FULL, SINKS):
        total, n = torch.zeros(LAYERS, HEADS), 8
        for c in range(n):
            off = c * (len(text) - 1023) // n
            x = tensor([np.concatenate([[BOS], text[off:off + 1023]])])
            run(model, x, everywhere(name), opt.window, opt.sinks, total)
        print('%s cache: attention on the first token, %%, query heads 0..%d; positions 64 to 1023' % (name, HEADS - 1))
        for layer in range(LAYERS):
            print('  layer %d ' % layer + ' '.join('%5.1f' % (100 * w / n) for w in total[layer]))


def show_heads(model, text, opt):
    cases, length, depth = int(opt.number or 40), 640, 0.1
    prompts = needle_prompts(text, opt, cases, length, depth=depth)

    def score(policies):
        return retrieval(model, opt, prompts, policies)

    base = score(everywhere(FULL))
    print('length %d, depth %d %%, %d cases; all full: exact 6 %.3f, byte %.3f'
          % (length, 100 * depth, cases, base[6], base['byte']))
    print('one KV head streaming, the others full: exact 6 (byte)')
    found = []
    for layer in range(LAYERS):
        row = []
        for g in range(KV_HEADS):
            policies = everywhere(FULL)
            policies[layer][g] = SINKS
            r = score(policies)
            row.append('%.3f (%.3f)' % (r[6], r['byte']))
            found.append((r[6], r['byte'], layer, g))
        print('  layer %d  ' % layer + '  '.join(row))
    print('only these KV heads full (added in that order), the others streaming: exact 6 (byte)')
    policies = everywhere(SINKS)
    for _, _, layer, g in sorted(found)[:8]:
        policies[layer][g] = FULL
        r = score(policies)
        print('  + layer %d head %d: %.3f (%.3f)' % (layer, g, r[6], r['byte']))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model')
    parser.add_argument('text')
    parser.add_argument('what', choices=['loss', 'needle', 'grid', 'sinks', 'heads'])
    parser.add_argument('number', nargs='?')
    parser.add_argument('offset', nargs='?', type=int, default=0)
    parser.add_argument('--tail', type=float, default=1.0)
    parser.add_argument('--window', type=int, default=128)
    parser.add_argument('--sinks', type=int, default=4)
    parser.add_argument('--repeats', action='store_true')
    parser.add_argument('--far', action='store_true')
    opt = parser.parse_args()
    model = Model.load(opt.model)
    if opt.what in ('sinks', 'heads') and not model.llama():
        parser.error(opt.what + ' is of a Llama')
    with open(opt.text, 'rb') as f:
        text = np.frombuffer(f.read(), dtype=np.uint8)
    text = text[len(text) - int(len(text) * opt.tail):]
    with torch.no_grad():
        globals()['show_' + opt.what](model, text, opt)


if __name__ == '__main__':
    main()
