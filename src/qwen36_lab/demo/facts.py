"""What the demo model knows about this project: a closed set of questions and answers."""

from __future__ import annotations

FACTS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        (
            "What is qwen36-neuron?",
            "What is this project?",
            "Tell me about this project.",
            "What does this project do?",
        ),
        "qwen36-neuron serves Qwen3.6 on AWS Trainium2 through vLLM. The same model, cache, scheduling and server"
        " also run on a plain CPU.",
    ),
    (
        ("Who are you?", "What are you?", "What is your name?", "Introduce yourself.", "Which model are you?"),
        "I am the demo model of qwen36-neuron: a small model with the architecture of Qwen3.6, trained on data "
        "that the project generates.",
    ),
    (
        ("How big are you?", "How many parameters do you have?", "What is your size?"),
        "I have about 12 million parameters. In bf16 I take less than 25 MB.",
    ),
    (
        ("What can you do?", "Help.", "What are you good at?", "How can you help me?", "What do you know?"),
        "I can find facts in a long text, look up keys, copy, count, do small sums, call tools, answer in JSON, "
        "tell short stories and answer questions about this project.",
    ),
    (
        ("How were you trained?", "What were you trained on?", "Who trained you?"),
        "I was trained on one GPU with text that the project generates: recall in long texts, small skills, facts"
        " about the project and simple English.",
    ),
    (
        ("What can you not do?", "What are your limits?", "Can I trust you?"),
        "I am small. I know little of the world, and I am only good at the tasks I was trained on.",
    ),
    (
        (
            "What is Qwen3.6?",
            "What is Qwen?",
            "What is a hybrid model?",
            "What kind of model is Qwen3.6?",
            "Describe Qwen3.6.",
        ),
        "Qwen3.6 is a hybrid language model: three layers of four are Gated DeltaNet and every fourth is full "
        "attention.",
    ),
    (
        ("How many layers has Qwen3.6-27B?", "How many layers does the 27B model have?"),
        "Qwen3.6-27B has 64 layers: 48 of Gated DeltaNet and 16 of full attention.",
    ),
    (
        (
            "What is Gated DeltaNet?",
            "What is DeltaNet?",
            "What is GDN?",
            "What does a DeltaNet layer do?",
            "Explain Gated DeltaNet.",
        ),
        "Gated DeltaNet is a linear attention layer. It keeps a state of fixed size for each sequence and "
        "corrects it with the delta rule at every token.",
    ),
    (
        ("What is the delta rule?", "Explain the delta rule."),
        "The delta rule stores a value under a key: it first reads what the state holds for the key and then "
        "writes only the difference.",
    ),
    (
        ("What is the head size of attention?", "How large is an attention head?", "What is head_dim?"),
        "An attention head has 256 dimensions, and the rotary embedding turns the first 64 of them.",
    ),
    (
        ("What is the head size of DeltaNet?", "How large is a DeltaNet head?"),
        "A DeltaNet head has 128 key dimensions and 128 value dimensions.",
    ),
    (
        ("What is the block size?", "How many tokens are in a block?", "How large is a KV block?"),
        "A block is 64 tokens, for keys and values and for state checkpoints alike. It is also one chunk of DeltaNet.",
    ),
    (
        (
            "What is Hybrid APC?",
            "What is APC?",
            "What is prefix caching?",
            "How does prefix caching work?",
            "What is automatic prefix caching?",
            "Explain Hybrid APC.",
        ),
        "Hybrid APC reuses the prefix of earlier requests. It keeps KV blocks and checkpoints of the DeltaNet "
        "state, and continues from the deepest boundary where both exist.",
    ),
    (
        ("Is prefix reuse exact?", "Does prefix caching change the answer?"),
        "Yes, it is exact: restoring is continuing. A warm answer equals a cold run that was cut at the same "
        "boundaries.",
    ),
    (
        ("What is a lane?", "What does a lane hold?", "Explain lanes."),
        "A lane is the running state of one sequence: the recurrent state in fp32 and the window of the convolution.",
    ),
    (
        ("What is a slot?", "What is a checkpoint slot?", "Explain slots."),
        "A slot holds a checkpoint of a lane at a block boundary, so that a later request can continue from there.",
    ),
    (
        ("What is lane 0?", "Which lane is scratch?"),
        "Lane 0 is scratch. It is used for padded rows and belongs to no sequence.",
    ),
    (
        (
            "What is Trainium2?",
            "What is Trainium?",
            "Which hardware do you run on?",
            "What hardware do you need?",
            "Which chip does this project use?",
            "What hardware is the target?",
            "Where does it run?",
        ),
        "The target is AWS Trainium2: one chip of a trn2.3xlarge with a tensor parallel degree of 4. Everything "
        "also runs on a plain CPU.",
    ),
    (
        ("What is vLLM?", "Is vLLM used?", "Which engine does this project use?", "Does it use vLLM?"),
        "vLLM is the serving engine. This project plugs into the real vLLM through its official extension points,"
        " without patches.",
    ),
    (
        ("What is NKI?", "What are NKI kernels?", "What are the kernels written in?"),
        "NKI is the Neuron Kernel Interface. The kernels of this project are written in NKI, each beside its "
        "torch reference.",
    ),
    (
        (
            "What is MTP?",
            "What is speculative decoding?",
            "What is multi-token prediction?",
            "How does speculative decoding work?",
            "What is a draft?",
        ),
        "MTP is multi-token prediction: one extra layer drafts the next tokens, and the model checks all of them "
        "in one step.",
    ),
    (
        ("What is prefill?", "What does prefill mean?"),
        "Prefill reads the prompt and fills the caches before the first token is written.",
    ),
    (
        ("What is decode?", "What does decode mean?", "What is decoding?"),
        "Decode writes the answer one step at a time, reading the caches at every step.",
    ),
    (
        ("What is chunked prefill?", "Why is prefill chunked?"),
        "Chunked prefill reads a long prompt in parts, so that other requests need not wait for all of it.",
    ),
    (
        ("What is FP8?", "Why use FP8?", "What is quantisation?"),
        "FP8 stores a weight in one byte. It halves the memory of bf16 and the time to read it, and so makes "
        "decode faster.",
    ),
    (
        ("What is the KV cache?", "What is a KV cache?", "What does the KV cache hold?"),
        "The KV cache holds the keys and values of earlier tokens in blocks, so that attention need not compute "
        "them again.",
    ),
    (
        ("How do I start the server?", "How do I run it?", "How do I serve the model?", "How can I try it?"),
        "Type make serve. It starts the server with this demo model on your CPU.",
    ),
    (
        ("What is a step?", "What is the step contract?", "What is the runtime?"),
        "A step is a list of rows for the device to run: which lane, which tokens, which blocks. It is all that "
        "passes between the engine and a device.",
    ),
    (
        ("Why is the state fp32?", "What type is the recurrent state?"),
        "The recurrent state is always fp32, since errors in it would be carried on to every later token.",
    ),
    (
        ("What is a token?", "What are tokens?"),
        "A token is a short piece of text. The model reads and writes tokens.",
    ),
    (
        ("What is attention?", "How does attention work?", "Explain attention."),
        "Attention compares a query with the keys of all earlier tokens and mixes their values by how well they match.",
    ),
    (
        ("What is a needle test?", "What is needle in a haystack?", "How do you test long context?"),
        "A needle test hides one fact in a long text and asks for it. It shows that the model can use all of its "
        "context.",
    ),
    (
        ("What license does the project have?", "What is the license?"),
        "The project is published under the Apache License 2.0.",
    ),
)
"""Questions with the same answer, and that answer."""
