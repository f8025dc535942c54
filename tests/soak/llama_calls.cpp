// What llama.cpp's own chat parser makes of an answer: a line of JSON in, a line of JSON out.
// In: template, bos, eos, messages, tools, thinking, answer. Out: calls, content, reasoning; or an error.

#include "chat.h"
#include "json.h"

#include <iostream>
#include <string>

static common_json judged(const common_json & asked) {
    common_chat_templates_ptr templates = common_chat_templates_init(
        nullptr, asked.at("template").get<std::string>(), asked.at("bos").get<std::string>(),
        asked.at("eos").get<std::string>());
    common_chat_templates_inputs inputs;
    inputs.messages            = common_chat_msgs_parse_oaicompat(asked.at("messages"));
    inputs.tools               = common_chat_tools_parse_oaicompat(asked.at("tools"));
    inputs.parallel_tool_calls = true;
    inputs.enable_thinking     = asked.at("thinking").get<bool>();
    inputs.reasoning_format    = COMMON_REASONING_FORMAT_DEEPSEEK;
    common_chat_params        made = common_chat_templates_apply(templates.get(), inputs);
    common_chat_parser_params how(made);
    how.reasoning_format = COMMON_REASONING_FORMAT_DEEPSEEK;
    how.parser.load(made.parser);
    common_chat_msg read =
        common_chat_parse(asked.at("answer").get<std::string>(), /* is_partial = */ false, how);
    common_json calls = common_json::array();
    for (const auto & call : read.tool_calls) {
        calls.push_back({ { "name", call.name }, { "arguments", call.arguments } });
    }
    common_json found  = common_json::object();
    found["calls"]     = calls;
    found["content"]   = read.content;
    found["reasoning"] = read.reasoning_content;
    found["prompt"]    = made.prompt;
    return found;
}

int main() {
    std::string line;
    while (std::getline(std::cin, line)) {
        common_json said = common_json::object();
        try {
            said = judged(common_json::parse(line));
        } catch (const std::exception & error) {
            said["error"] = std::string(error.what());
        }
        std::cout << said.dump_safe() << std::endl;
    }
}
