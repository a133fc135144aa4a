"""What becomes of everything that a responses request can hold, where the upstream speaks chat completions.

PURE data. `mapped` includes what the gateway itself keeps; why something is refused is what the caller reads. The
conformance table of the documentation is made from these tables; tests hold them against the code, and against the
official client's types.
"""

from __future__ import annotations

from reconciler.dialects.fields import Field

FIELDS: dict[str, Field] = {
    "model": Field("mapped", "The gateway puts in the upstream's name of the model; the answer has the caller's."),
    "input": Field("mapped", "Text and items become messages; see the table of items."),
    "instructions": Field("mapped", "The first system message, together with system and developer items that lead."),
    "tools": Field("mapped", "Functions become chat functions; see the table of tools."),
    "tool_choice": Field("mapped", "Modes and functions are said in chat's words; allowed_tools narrows the tools."),
    "parallel_tool_calls": Field("mapped", "Passed on where there are tools, since upstreams refuse it without."),
    "text": Field("mapped", "format becomes response_format; verbosity is left out, since few upstreams know it."),
    "reasoning": Field("mapped", "effort is sent as far as the upstream can; summary decides how reasoning is shown."),
    "max_output_tokens": Field("mapped", "The upstream's limit of tokens, under the name that it has there."),
    "temperature": Field("passed", "The same in both dialects."),
    "top_p": Field("passed", "The same in both dialects."),
    "top_logprobs": Field("mapped", "Asks chat for log probabilities."),
    "include": Field("mapped", "Log probabilities and encrypted reasoning; the rest belongs to refused tools."),
    "metadata": Field("mapped", "Kept with the answer; it is not sent to the upstream."),
    "store": Field("mapped", "Whether the gateway keeps the answer; nothing is stored at the upstream."),
    "previous_response_id": Field("mapped", "The kept conversation is sent along; what is not known here is a 400."),
    "stream": Field("passed", "The same in both dialects."),
    "stream_options": Field("mapped", "Usage is always asked for; include_obfuscation is left out: nothing is padded."),
    "user": Field("passed", "The same in both dialects."),
    "service_tier": Field("mapped", "Passed on where it is not the default."),
    "truncation": Field("mapped", "disabled is what happens anyway; auto is left out: nothing is cut from the input."),
    "background": Field("refused", "there is no queue here; send the request without it and stream the answer"),
    "conversation": Field("refused", "conversations are not kept here; use previous_response_id"),
    "prompt": Field("refused", "stored prompts live at their provider; send instructions and input"),
    "moderation": Field("refused", "nothing here moderates, and a policy must not be left out unseen"),
    "max_tool_calls": Field("warned", "It counts calls of built-in tools, and none of these are called here."),
    "background_options": Field("warned", "They say how a background request runs, and those are refused."),
    "context_management": Field("warned", "Nothing is compacted here; too long an input is the upstream's error."),
    "safety_identifier": Field("warned", "Chat upstreams refuse it; it is kept with the answer."),
    "prompt_cache_key": Field("warned", "Chat upstreams cache by prefix without it; it is kept with the answer."),
    "prompt_cache_options": Field("warned", "Chat upstreams cache by prefix without them."),
    "prompt_cache_retention": Field("warned", "Chat upstreams decide themselves how long they cache."),
    "access_programs": Field("warned", "They are an agreement with one provider."),
    "image": Field("warned", "Chat upstreams decide themselves how images are compressed."),
}

_BUILT_IN = "is run by the provider of the responses API and cannot be run here; remove it, or offer a function"

TOOLS: dict[str, Field] = {
    "function": Field("mapped", "A chat function; what chat has no word for (async, defer_loading …) is left out."),
    "namespace": Field("mapped", "Its functions are offered as NAMESPACE__NAME; calls come back under their names."),
    "custom": Field("refused", "takes free text, which chat tools cannot; offer a function with one text argument"),
    **{
        kind: Field("refused", _BUILT_IN)
        for kind in (
            "web_search", "web_search_2025_08_26", "web_search_preview", "web_search_preview_2025_03_11", "file_search",
            "code_interpreter", "computer", "computer_use", "computer_use_preview", "image_generation", "mcp",
            "programmatic_tool_calling", "tool_search",
        )
    },
    **{
        kind: Field("refused", "is known to a few models only and has no form in chat; offer a function")
        for kind in ("local_shell", "shell", "apply_patch")
    },
}  # fmt: skip

_TOOL_RECORD = "records what a built-in tool did, which chat cannot say; leave it out, or say it in a message"

ITEMS: dict[str, Field] = {
    "message": Field("mapped", "A message of the same role; developer becomes system."),
    "function_call": Field("mapped", "A tool call of the assistant's message that it belongs to."),
    "function_call_output": Field("mapped", "A tool message; images in it follow in a user message."),
    "reasoning": Field("mapped", "Sent back where the upstream takes reasoning, else left out and named."),
    "item_reference": Field("mapped", "The kept item that it names; one that is not known here is a 400."),
    "web_search_call": Field("warned", "It says that there was a search; the message after it says what was found."),
    "compaction": Field("refused", "can be read by the provider that made it only; send the items themselves"),
    "compaction_trigger": Field("refused", "asks for a compaction, and nothing is compacted here"),
    "configuration_update": Field("refused", "changes settings in the middle of the input; set them in the request"),
    "additional_tools": Field("refused", "adds tools in the middle of the input; list them in tools"),
    **{
        kind: Field("refused", _TOOL_RECORD)
        for kind in (
            "file_search_call", "computer_call", "computer_call_output", "code_interpreter_call",
            "image_generation_call", "local_shell_call", "local_shell_call_output", "shell_call", "shell_call_output",
            "apply_patch_call", "apply_patch_call_output", "mcp_list_tools", "mcp_approval_request",
            "mcp_approval_response", "mcp_call", "custom_tool_call", "custom_tool_call_output", "tool_search_call",
            "tool_search_output", "program", "program_output",
        )
    },
}  # fmt: skip

CONTENT: dict[str, Field] = {
    "input_text": Field("mapped", "Text."),
    "output_text": Field("mapped", "Text of the assistant; annotations and log probabilities stay behind."),
    "refusal": Field("mapped", "Text of the assistant."),
    "input_image": Field("mapped", "image_url with its detail (original becomes high); a file_id is a 400."),
    "input_file": Field(
        "mapped", "Text becomes text, other files a file part where taken; file_id and file_url are a 400."
    ),
    "input_audio": Field("mapped", "The same part in chat."),
}

INCLUDE: dict[str, Field] = {
    "message.output_text.logprobs": Field("mapped", "Asks chat for log probabilities."),
    "reasoning.encrypted_content": Field("mapped", "Reasoning in a form that can be sent back; it is no secret."),
    **{
        name: Field("warned", "It belongs to tools or items that do not occur here.")
        for name in (
            "file_search_call.results", "web_search_call.results", "web_search_call.action.sources",
            "message.input_image.image_url", "computer_call_output.output.image_url", "code_interpreter_call.outputs",
        )
    },
}  # fmt: skip

# Keys that are read, or that only keep books. Any other that is set is named to the caller.
ITEM_KEYS: dict[str, frozenset[str]] = {
    "message": frozenset(("type", "id", "status", "role", "content")),
    "function_call": frozenset(("type", "id", "status", "call_id", "name", "namespace", "arguments")),
    "function_call_output": frozenset(("type", "id", "status", "call_id", "name", "namespace", "output")),
    "reasoning": frozenset(("type", "id", "status", "summary", "content", "encrypted_content")),
}
PART_KEYS: dict[str, frozenset[str]] = {
    "input_text": frozenset(("type", "text")),
    "output_text": frozenset(("type", "text", "annotations", "logprobs")),
    "refusal": frozenset(("type", "refusal")),
    "input_image": frozenset(("type", "image_url", "detail", "file_id")),
    "input_file": frozenset(("type", "filename", "file_data", "file_id", "file_url")),
    "input_audio": frozenset(("type", "input_audio")),
}
FUNCTION_KEYS = frozenset(("type", "name", "description", "parameters", "strict"))
