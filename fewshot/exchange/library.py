"""The table of kinds: what PEFT's config fields and tensors are here."""

import math

from fewshot.exchange.kinds import (
  Entry,
  Field,
  Kind,
  cayley_terms,
  counted,
  drawn,
  field,
  flat_places,
  flipped,
  padded,
  pair,
  places,
  redrawn,
  rooted,
  started,
  vector,
)

DROPOUT = ('rank_dropout', 'module_dropout', 'rank_dropout_scale')
LORA_STARTS = (
  'init_lora_weights', 'eva_config', 'corda_config', 'lora_ga_config', 'loftq_config',
  'megatron_core', 'qalora_group_size', 'runtime_config', 'ensure_weight_tying',
)  # fmt: skip
PATTERNS = {'rank_pattern': 'r', 'alpha_pattern': 'alpha'}
RANK, ALPHA = {'rank': field('r', 8)}, {'alpha': field('alpha', 8)}
KINDS: dict[str, Kind] = {
  'lora': Kind(
    'LORA',
    ('lora', 'lora_plus', 'lora_pro'),
    pair('.weight'),
    {
      'rank': field('r', 8),
      'alpha': field('lora_alpha', 8),
      'scaling': Field(
        ('use_rslora',),
        lambda c: 'alpha/sqrt(r)' if rooted(c) else 'alpha/r',
        lambda v: {'use_rslora': v == 'alpha/sqrt(r)'},
      ),
      'dropout': field('lora_dropout', 0.0),
    },
    {'use_dora': False},
    LORA_STARTS,
    {'rank_pattern': 'r', 'alpha_pattern': 'lora_alpha'},
    conv1d=True,
    finish=started,
  ),
  'dora': Kind(
    'LORA',
    ('dora',),
    {**pair('.weight'), 'm': Entry('lora_magnitude_vector', out=0)},
    {
      'rank': field('r', 8),
      'alpha': Field(
        ('lora_alpha', 'use_rslora'),
        lambda c: c.get('lora_alpha', 8) * (math.sqrt(c.get('r', 8)) if rooted(c) else 1),
        lambda v: {'lora_alpha': v},
      ),
    },
    {'use_dora': True},
    LORA_STARTS,
    {'rank_pattern': 'r', 'alpha_pattern': 'lora_alpha'},
    '/kernel',
    conv1d=True,
  ),
  'adalora': Kind(
    'ADALORA',
    ('adalora',),
    {**pair(''), 'e': vector('lora_E', 0)._replace(out=None)},
    {
      'init_r': field('init_r', 12),
      'target_r': field('target_r', 8),
      'alpha': field('lora_alpha', 8),
      'tinit': field('tinit', 0),
      'tfinal': field('tfinal', 0),
      'deltaT': field('deltaT', 1),
      'total_step': field('total_step', 40),
      'beta1': field('beta1', 0.85),
      'beta2': field('beta2', 0.85),
      'orth_reg_weight': field('orth_reg_weight', 0.5),
    },
    free=('r', 'lora_dropout', 'rank_pattern', *LORA_STARTS),
    prepare=padded,
  ),
  'ia3': Kind(
    'IA3',
    ('ia3',),
    {'l_out': vector('ia3_l', 0), 'l_in': vector('ia3_l', 1)},
    free=('feedforward_modules', 'init_ia3_weights'),
    conv1d=True,
  ),
  'layernorm': Kind(
    'LN_TUNING',
    ('layernorm', 'tune'),
    {'scale': Entry('ln_tuning_layers.weight'), 'bias': Entry('ln_tuning_layers.bias')},
  ),
  'tokens': Kind(
    'TRAINABLE_TOKENS',
    ('tokens',),
    {'embedding': Entry('trainable_tokens_delta')},
    {
      'ids': Field(
        ('token_indices',),
        lambda c: tuple(c['token_indices']),
        lambda v: {'token_indices': list(v)},
      )
    },
  ),
  'vera': Kind(
    'VERA',
    ('vera',),
    {
      'lambda_b': Entry('vera_lambda_b'),
      'lambda_d': Entry('vera_lambda_d'),
      'a': flipped('vera_A')._replace(shared=True),
      'b': flipped('vera_B')._replace(shared=True),
    },
    {'rank': field('r', 256), 'd_initial': field('d_initial', 0.1)},
    {'save_projection': True},
    ('vera_dropout', 'projection_prng_key'),
  ),
  'randlora': Kind(
    'RANDLORA',
    ('randlora',),
    {
      'lambda': Entry('randlora_lambda'),
      'gamma': Entry('randlora_gamma'),
      'a': Entry('randlora_A', shared=True),
      'b': Entry('randlora_B', shared=True),
    },
    {'rank': field('r', 32), 'alpha': field('randlora_alpha', 640)},
    {'save_projection': True},
    ('randlora_dropout', 'projection_prng_key', 'sparse', 'very_sparse'),
    copies=True,
  ),
  'vblora': Kind(
    'VBLORA',
    ('vblora',),
    {
      'logits_a': Entry('vblora_logits_A'),
      'logits_b': Entry(
        'vblora_logits_B', lambda x, _: x.swapaxes(0, 1), lambda x, _: x.swapaxes(0, 1)
      ),
      'bank': Entry('vblora_vector_bank', shared=True),
    },
    {
      'rank': field('r', 4),
      'num_vectors': field('num_vectors', 256),
      'vector_length': field('vector_length', 256),
      'topk': field('topk', 2),
    },
    free=('vblora_dropout', 'init_vector_bank_bound', 'init_logits_std'),
  ),
  'loha': Kind(
    'LOHA',
    ('loha',),
    {
      'a1': flipped('hada_w1_b'),
      'b1': flipped('hada_w1_a'),
      'a2': flipped('hada_w2_b'),
      'b2': flipped('hada_w2_a'),
    },
    RANK | ALPHA,
    free=(*DROPOUT, 'use_effective_conv2d'),
    patterns=PATTERNS,
    leaf='/kernel',
  ),
  'lokr': Kind(
    'LOKR',
    ('lokr',),
    {
      'c': flipped('lokr_w1'),
      'c_a': flipped('lokr_w1_b'),
      'c_b': flipped('lokr_w1_a'),
      'd': flipped('lokr_w2'),
      'd_a': flipped('lokr_w2_b'),
      'd_b': flipped('lokr_w2_a'),
    },
    RANK
    | ALPHA
    | {'factor': field('decompose_factor', -1), 'decompose_both': field('decompose_both', False)},
    free=(*DROPOUT, 'use_effective_conv2d'),
    patterns=PATTERNS,
    leaf='/kernel',
  ),
  'miss': Kind(
    'MISS',
    ('miss',),
    {'d': Entry('miss_block')},
    {'rank': field('r', 64)},
    {'mini_r': 1},
    ('miss_dropout',),
  ),
  'shira': Kind(
    'SHIRA',
    ('shira',),
    {'value': Entry('shira_weight'), 'index': Entry('shira_indices', flat_places, places)},
    {'rank': field('r', 32)},
    free=('mask_type', 'random_seed'),
    leaf='/kernel',
  ),
  'c3a': Kind(
    'C3A',
    ('c3a',),
    {'c': Entry('c3a_kernel')},
    {'block_size': field('block_size', 256)},
    patterns={'block_size_pattern': 'block_size'},
    leaf='/kernel',
  ),
  'fourierft': Kind(
    'FOURIERFT',
    ('fourierft',),
    {'spectrum': Entry('fourierft_spectrum')},
    {'n_frequency': field('n_frequency', 1000), 'scaling': field('scaling', 150.0)},
    free=('random_loc_seed',),
    patterns={'n_frequency_pattern': 'n_frequency'},
    leaf='/kernel',
    derive=drawn,
    finish=redrawn,
  ),
  'oft': Kind(
    'OFT',
    ('oft',),
    {'q': Entry('oft_R.weight')},
    {
      'block_size': field('oft_block_size', 32),
      'neumann': Field(
        ('use_cayley_neumann', 'num_cayley_neumann_terms'),
        cayley_terms,
        lambda v: {'use_cayley_neumann': v > 0, 'num_cayley_neumann_terms': v or 5},
      ),
    },
    free=('r', 'module_dropout', 'eps'),
  ),
  'boft': Kind(
    'BOFT',
    ('boft',),
    {'a': Entry('boft_R'), 's': vector('boft_s', 0)},
    {'block_size': field('boft_block_size', 4), 'factors': field('boft_n_butterfly_factor', 1)},
    free=('boft_block_num', 'boft_dropout'),
    prepare=counted,
    leaf='/kernel',
  ),
  'hra': Kind('HRA', ('hra',), {'u': Entry('hra_u')}, RANK),
  'road': Kind(
    'ROAD',
    ('road',),
    {'theta': Entry('road_theta'), 'alpha': Entry('road_alpha')},
    {
      'variant': Field(
        ('variant',),
        lambda c: int(str(c.get('variant', 'road_1')).removeprefix('road_')),
        lambda v: {'variant': f'road_{v}'},
      ),
      'group_size': field('group_size', 64),
    },
  ),
  'llama_adapter': Kind(
    'ADAPTION_PROMPT',
    ('llama_adapter',),
    {
      'prompt': Entry('adaption_prompt', lambda x, _: x[0], lambda x, _: x[None]),
      'gate': Entry('adaption_gate', lambda x, _: x.reshape(()), lambda x, _: x.reshape(1)),
    },
    {'length': field('adapter_len', None)},
    free=('adapter_layers',),
  ),
  'prompt': Kind('PROMPT_TUNING', ('soft_prompt', 'scaled_prompt'), {}),
  'p_tuning': Kind('P_TUNING', ('p_tuning',), {}),
  'prefix': Kind('PREFIX_TUNING', ('prefix',), {}),
}
PROMPTS = ('PROMPT_TUNING', 'P_TUNING', 'PREFIX_TUNING')
