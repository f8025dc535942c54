"""Small chat templates, one per style found in the wild, written for these tests."""

CHATML = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""

BOS = """\
{{ bos_token }}{% for m in messages %}[{{ m.role | upper }}] {{ m.content | trim }}{{ eos_token }}
{% endfor %}{% if add_generation_prompt %}[ASSISTANT]{% endif %}"""

NO_SYSTEM = """\
{%- if messages[0].role == 'system' -%}
  {{- raise_exception('System role not supported') -}}
{%- endif -%}
{%- for m in messages -%}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{%- endfor -%}
{%- if add_generation_prompt -%}<assistant>{%- endif -%}
"""

IGNORES_SYSTEM = """\
{%- for m in messages if m.role != 'system' -%}<{{ m.role }}>{{ m.content }}</{{ m.role }}>
{%- endfor -%}
{%- if add_generation_prompt -%}<assistant>{%- endif -%}
"""

SWITCHED = (
    CHATML
    + """\
{%- if add_generation_prompt and enable_thinking is defined and enable_thinking is false -%}
<think>

</think>

{% endif -%}
"""
)

OPENS_THINKING = """\
{%- for m in messages -%}<|{{ m.role }}|>
{%- if m.role == 'assistant' and m.reasoning_content -%}<think>{{ m.reasoning_content }}</think>
{%- endif -%}{{ m.content }}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|assistant|>{{ '<think>' if thinking | default(true) else '</think>' }}
{% endif -%}
"""

EFFORT = """\
<|start|>system<|message|>Reasoning: {{ reasoning_effort | default('medium') }}<|end|>
{%- for m in messages -%}
  {%- if m.role == 'assistant' -%}
    {%- if '<|channel|>' in m.content -%}{{ raise_exception('channel in content') }}{%- endif -%}
    <|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>
  {%- else -%}
    <|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}
"""

TWO_EFFORTS = """\
{%- if reasoning_effort is defined and reasoning_effort not in ['no_think', 'low', 'high'] -%}
  {{- raise_exception('reasoning_effort: ' + reasoning_effort) -}}
{%- endif -%}
effort={{ reasoning_effort | default('none given') }}|{{ messages[-1].content }}
"""

GENERATION = """\
{%- for m in messages -%}
  {%- if m.role == 'assistant' -%}
    {%- generation -%}A:{{ m.content }};{%- endgeneration -%}
  {%- else -%}
    U:{{ m.content }};
  {%- endif -%}
{%- endfor -%}
"""

REFUSES_EMPTY = """\
{%- for m in messages -%}
  {%- if not m.content -%}{{ raise_exception('empty ' + m.role) }}{%- endif -%}
  <{{ m.role }}>{{ m.content }}
{%- endfor -%}
"""
