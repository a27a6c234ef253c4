# SPDX-License-Identifier: Apache-2.0
# For scripts/test and scripts/test-security, which read it: tests that failed are run once more, by themselves, and called
# unsteady if they pass then: each is a race, of the test or of insula, to be found.  More than a few are no accident.

# Runs tests; what failed is noted in the folder given first.
run() {
    noted=$1
    shift
    .venv/bin/python -m pytest -o cache_dir="$noted" "$@"
}

# Tells whether what failed, at most $3, has another try.  1: all tests were run, and some failed; anything else is no case
# for one (tests/conftest.py).
is_worth_another_try() {
    test "$2" -eq 1 && test "$(cat "$1/v/insula/ended" 2> /dev/null)" = 1 &&
        test "$(grep -c '": true' "$1/v/cache/lastfailed")" -le "$3"
}

# The code in which tests end that ended with $2: those that failed, at most $3, are run $4 times more, and have to pass
# each time.
judge() {
    cache=$1 code=$2 most=$3 times=$4
    shift 4
    is_worth_another_try "$cache" "$code" "$most" || return "$code"
    unsteady=$(sed -n 's/^ *"\(.*\)": true,*$/\1/p' "$cache/v/cache/lastfailed")
    while test "$times" -gt 0; do
        echo
        echo "once more:"
        rm -rf "$cache-again"
        cp -r "$cache" "$cache-again"
        run "$cache-again" --last-failed "$@" || return
        times=$((times - 1))
    done
    printf '%s\n' "$unsteady" | sed 's/^/UNSTEADY: /'
}
