# localmoe's words for fish: localmoe completion fish > ~/.config/fish/completions/localmoe.fish
function __localmoe_candidates
    set -l words (commandline -opc) (commandline -ct)
    set -l program $words[1]
    $program completion candidates -- $words[2..] 2>/dev/null | while read -l line
        if test "$line" = :files
            __fish_complete_path (commandline -ct)
        else
            echo $line
        end
    end
end
complete -c localmoe -f -a '(__localmoe_candidates)'
