# localmoe's words for bash: eval "$(localmoe completion bash)"
_localmoe() {
    local line text word before
    local -a words
    # Bash cuts words at colons and equals signs; localmoe's (model:QUANT, --ctx=8k) go together.
    line=${COMP_LINE:0:COMP_POINT}
    read -r -a words <<<"$line"
    [[ $line == *[[:space:]] || ${#words[@]} -eq 1 ]] && words+=("")
    word=${words[-1]}
    before=${word%"${word##*[:=]}"}
    COMPREPLY=()
    while IFS= read -r text; do
        text=${text%%$'\t'*}
        if [[ $text == :files ]]; then
            compopt -o filenames 2>/dev/null
            while IFS= read -r text; do COMPREPLY+=("$text"); done < <(compgen -f -- "${word##*[:=]}")
        elif [[ $COMP_WORDBREAKS == *[:=]* ]]; then
            COMPREPLY+=("${text#"$before"}")
        else
            COMPREPLY+=("$text")
        fi
    done < <("${words[0]}" completion candidates -- "${words[@]:1}" 2>/dev/null)
    # A value that is still to come belongs to the same word.
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace 2>/dev/null
    return 0
}
complete -F _localmoe localmoe
