"""The chat templates as their makers publish them, with `{% generation %}` around what the model says.

Written down from the sources that are named, and from nothing of this project.
"""

from __future__ import annotations

_ALTERNATE = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}"
    "{% endif %}"
)

# lm-sys/FastChat, conversation.py: vicuna_v1.1 is ADD_COLON_TWO with sep " " and sep2 "</s>".
VICUNA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + ' ' }}{% set rest = messages[1:] %}"
    "{% else %}{{ 'A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user\\'s questions.' + \" \" }}{% set rest = messages %}{% endif %}"
    "{% for message in rest %}" + _ALTERNATE + "{% if message['role'] == 'user' %}{{ 'USER: ' + message['content'] }}"
    "{% if not loop.last %}{{ ' ' }}{% endif %}"
    "{% else %}{{ 'ASSISTANT:' }}{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)

# tatsu-lab/stanford_alpaca, train.py: PROMPT_DICT['prompt_no_input'], then output + EOS.
ALPACA = (
    "{{ bos_token + 'Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\\n\\n' }}{% for message in messages %}" + _ALTERNATE + "{% if message['role'] == 'user' %}"
    "{{ '### Instruction:\\n' + message['content'] + '\\n\\n### Response:' }}"
    "{% else %}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
)

# nlpxucan/WizardLM, WizardLM/src/inference_wizardlm.py.
WIZARDLM_7B = (
    "{{ bos_token }}{% for message in messages %}" + _ALTERNATE + "{% if message['role'] == 'user' %}"
    "{{ message['content'] + '\\n\\n### Response:\\n' }}"
    "{% else %}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
)

# meta-llama/Llama-2-7b-chat-hf, tokenizer_config.json.
LLAMA2_CHAT = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}" + _ALTERNATE + ""
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{% generation %}{{ ' '  + content.strip() + ' ' + eos_token }}"
    "{% endgeneration %}{% endif %}{% endfor %}"
)

# meta-llama/Meta-Llama-3-8B-Instruct, tokenizer_config.json.
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set header = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' %}"
    "{% if loop.index0 == 0 %}{% set header = bos_token + header %}{% endif %}{{ header }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] | trim + '<|eot_id|>' }}"
    "{% endgeneration %}{% else %}{{ message['content'] | trim + '<|eot_id|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)

# Qwen/Qwen3-8B, tokenizer_config.json, without tools and thoughts; the newline that it writes after the last answer,
# which nothing follows, is left out.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% if not loop.last %}{{ '\\n' }}{% endif %}{% else %}{{ message['content'] + '<|im_end|>\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

TEMPLATES = {
    "vicuna": VICUNA,
    "wizardlm": VICUNA,  # nlpxucan/WizardLM, training/src/train_freeform_multiturn.py: vicuna_v1.1
    "wizardlm_7b": WIZARDLM_7B,
    "alpaca": ALPACA,
    "llama2_chat": LLAMA2_CHAT,
    "llama3": LLAMA3,
    "chatml": CHATML,
}
TAKES_SYSTEM = frozenset({"vicuna", "wizardlm", "llama2_chat", "llama3", "chatml"})
