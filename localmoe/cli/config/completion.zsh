#compdef localmoe
# localmoe's words for zsh: eval "$(localmoe completion zsh)" after compinit
_localmoe() {
    local line files=0
    local -a found shown
    while IFS= read -r line; do
        if [[ $line == :files ]]; then
            files=1
        elif [[ $line == *$'\t'* ]]; then
            found+=("${line%%$'\t'*}")
            shown+=("${line%%$'\t'*}  -- ${line#*$'\t'}")
        else
            found+=("$line")
            shown+=("$line")
        fi
    done < <("${words[1]}" completion candidates -- "${(@)words[2,CURRENT]}" 2>/dev/null)
    (( ${#found} )) && compadd -l -d shown -a found
    (( files )) && _files
    return 0
}
if [[ $funcstack[1] == _localmoe ]]; then _localmoe "$@"; else compdef _localmoe localmoe; fi
