"""Chat templates in the shapes that models have, and what each makes of the assistant's turns."""

CHATML = """{%- if tools %}{{ '<|im_start|>system\\n# Tools\\n' }}
{%- for tool in tools %}{{ tool | tojson }}{{ '\\n' }}{% endfor %}{{ '<|im_end|>\\n' }}{% endif %}
{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\\n' }}
{%- if m.content %}{{ m.content }}{% endif %}
{%- for call in m.tool_calls or [] %}
{{- '\\n<tool_call>\\n' }}{{ call.function | tojson }}{{ '\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

MARKED = """{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'assistant' %}
{%- generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}
{%- else %}{{ m.content + '<|im_end|>\\n' }}{% endif %}
{%- endfor %}"""

FOLDED = """{%- set system = '' %}
{%- if messages[0].role == 'system' %}
{%- set system = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' %}
{%- set messages = messages[1:] %}
{%- endif %}
{%- for m in messages %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('roles must alternate') }}
{%- endif %}
{%- if m.role == 'user' %}
{{- bos_token + '[INST] ' + (system if loop.first else '') + m.content | trim + ' [/INST]' }}
{%- else %}
{{- ' ' + m.content | trim + ' ' + eos_token }}
{%- endif %}
{%- endfor %}"""
"""The system's words in the first question, and no generation prompt."""

HEADERS = """{{ bos_token }}
{%- for m in messages %}
{{- '<|start|>' + ('model' if m.role == 'assistant' else m.role) + '<|end|>\\n\\n' }}
{{- m.content | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>model<|end|>\\n\\n' }}{% endif %}"""
"""A role in a header of special tokens, another name for the assistant, words trimmed."""

THINKING = """{%- set ns = namespace(last=-1) %}
{%- for m in messages %}
{%- if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{%- endfor %}
{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'assistant' %}
{%- set words = m.content.split('</think>')[-1].lstrip('\\n') %}
{%- set thought = '' %}
{%- if '</think>' in m.content %}
{%- set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
{%- endif %}
{%- if loop.index0 > ns.last %}{{ '<think>\\n' + thought + '\\n</think>\\n\\n' }}{% endif %}
{{- words }}
{%- else %}{{ m.content }}{% endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
"""Thoughts of earlier turns are left out, and the last turn always has a place for them."""

OPENED = """{{ bos_token }}
{%- for m in messages %}
{%- if m.role == 'user' %}{{ '<|user|>' + m.content }}
{%- else %}{{ '<|assistant|>' + m.content.split('</think>')[-1] + eos_token }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|><think>\\n' }}{% endif %}"""
"""A generation prompt that goes on where a chat does not."""

LINES = """{%- for m in messages %}
{{- m.role | upper + ': ' + m.content + (eos_token if m.role == 'assistant' else '\\n') }}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""
"""Plain words for roles."""

PLAIN_ENDS = """{%- for m in messages %}
{{- '### ' + m.role + ':\\n' + m.content + '\\n### end\\n\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '### assistant:\\n' }}{% endif %}"""
"""No special token anywhere."""

MOVED = """{%- for m in messages %}
{%- if m.role == 'user' %}
{%- if tools and loop.index0 == messages | length - 1 - (messages[-1].role != 'user') %}
{{- '[TOOLS]' + (tools | tojson) + '[/TOOLS]' }}
{%- endif %}
{{- '[INST]' + m.content + '[/INST]' }}
{%- else %}{{ m.content + eos_token }}{% endif %}
{%- endfor %}"""
"""Tools stand before the last question, wherever that is."""

LAST_ONLY = """{%- for m in messages %}
{{- '<|' + m.role + '|>' + m.content }}
{%- if loop.last and m.role == 'assistant' %}{{ eos_token }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""
"""Only the last turn is ended."""

UNSEEN = """{%- for m in messages if m.role != 'system' %}
{{- m.role + ':' + m.content + eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"""
"""The system's words are left out."""

UNPROMPTED = """{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endfor %}"""
"""Headers, and no generation prompt."""

SILENT = """{%- for m in messages %}
{%- if m.role == 'user' %}{{ '<|user|>' + m.content }}{% endif %}
{%- endfor %}"""
"""The assistant's words are left out."""

WITHIN = """{%- for m in messages %}
{%- if m.role == 'user' %}{{ '<|user|>' + m.content }}
{%- elif m.role == 'assistant' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|assistant|>' }}{% endif %}
{%- for call in m.tool_calls or [] %}
{{- '[call]' }}{{ call.function | tojson }}
{%- for t in messages if t.role == 'tool' %}{{ '[answer]' + t.content }}{% endfor %}
{%- endfor %}
{%- if m.content and not m.tool_calls %}{{ m.content + eos_token }}{% endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt and messages[-1].role != 'tool' %}{{ '<|assistant|>' }}{% endif %}"""
"""Answers of tools in the midst of a turn."""

SPECIAL = [
    *("<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|eot|>", "<|user|>"),
    "<|assistant|>",
]
