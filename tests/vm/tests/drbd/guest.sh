#!/bin/sh
# What one machine does for the calibration of the volume's model: `sh guest.sh OPERATION [ARGUMENT]`.
# Block N of the device holds the word N once write N was made.
set -eu
at=/run/drbd/cal
device=/dev/drbd7
disk=/dev/mapper/dyad-cal
admin="drbdadm -c $at/res"
mkdir -p $at

# The line of /proc/drbd has this: no processes are started, each costs an emulated machine much.
is() {
    while read -r minor state; do
        if [ "$minor" = 7: ]; then
            case "$state" in *"$1"*) return 0 ;; *) return 1 ;; esac
        fi
    done </proc/drbd
    return 1
}
frozen() { is " C s"; }
until_is() { until is "$1"; do sleep 0.1; done; }
retry() { until "$@" >/dev/null 2>&1; do sleep 0.2; done; }

# The agent ends what its commands leave behind, in their control group.
outlive() { echo 0 >/sys/fs/cgroup/cgroup.procs; }

write() {
    (
        outlive
        if printf '%-512s' "$1" | dd of=$device bs=512 seek="$1" oflag=direct,sync conv=notrunc,nocreat; then
            echo acknowledged
        else
            echo lost
        fi >"$at/next.$1"
        mv "$at/next.$1" "$at/write.$1"
    ) </dev/null >/dev/null 2>&1 &
}

# How a write stands once it stands still: it ended, or all writes are frozen.
outcome() {
    until [ -e "$at/write.$1" ]; do
        sleep 0.3
        if frozen && sleep 0.3 && [ ! -e "$at/write.$1" ]; then
            echo waits
            return
        fi
    done
    cat "$at/write.$1"
}

# How a promotion stands: it ended, or its helper has been told nothing.
promotion() {
    until [ -e $at/promoted ]; do
        if [ -e $at/asked ] && [ ! -s $at/answer ]; then
            echo waits
            return
        fi
        sleep 0.1
    done
    cat $at/promoted
}

# What becomes of the link: both have everything, or this one stays alone; nothing while the other may know more.
link() {
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
        for _ in 1 2 3 4 5 6 7 8 9 10; do
            if is "cs:Connected" && is "ds:UpToDate/UpToDate"; then
                echo streams
                return
            elif is "cs:StandAlone"; then
                echo refused
                return
            fi
            sleep 0.1
        done
    done
}

alone() { while is "cs:Connected"; do sleep 0.1; done; }

rules() {
    nft "table inet cal { chain in { type filter hook input priority 0; tcp dport 7797 $1; tcp sport 7797 $1; };
         chain out { type filter hook output priority 0; tcp dport 7797 $1; tcp sport 7797 $1; }; }"
}

case "$1" in
install)
    cat >$at/helper <<'END'
#!/bin/sh
[ "$1" = fence-peer ] || exit 0
cd /run/drbd/cal
echo >asked
until [ -s answer ]; do sleep 0.1; done
read -r answer <answer
rm asked
exit "$answer"
END
    chmod 755 $at/helper
    printf %s "$2" >$at/res
    printf %s $at/helper >/sys/module/drbd/parameters/usermode_helper
    lvcreate -qq -y -Wn -Zn -L 8m -n cal dyad
    ;;
new)
    rm -f $at/write.* $at/answer $at/promoted
    dd if=/dev/zero of=$disk bs=1M count=8 oflag=direct 2>/dev/null
    { $admin create-md --force cal && $admin up cal; } >/dev/null 2>&1
    ;;
begin)
    until_is "cs:Connected"
    drbdsetup new-current-uuid --clear-bitmap 7
    until_is "ds:UpToDate/UpToDate"
    $admin primary cal
    ;;
end)
    echo 1 >$at/answer
    if is cs:; then
        { drbdsetup detach --force 7; $admin disconnect --force cal; drbdsetup resume-io 7; } >/dev/null 2>&1 || true
        retry $admin secondary cal
        retry $admin down cal
    fi
    nft delete table inet cal 2>/dev/null || true
    ;;
write)
    if is ro:Primary; then
        write "$2"
        outcome "$2"
    else
        write "$2"
        [ "$(outcome "$2")" != lost ] || echo refused
    fi
    ;;
outcome) outcome "$2" ;;
disk)
    all=
    for block in 1 2 3 4 5 6 7 8 9; do
        word=$(dd if=$disk bs=512 skip=$block count=1 iflag=direct 2>/dev/null | tr -d ' \0')
        all="$all${word:+${all:+ }$word}"
    done
    echo "$all"
    ;;
cut)
    rules "reject with tcp reset"
    alone
    ;;
alone) alone ;;
link) link ;;
silence) rules drop ;;
mend)
    nft delete table inet cal
    link
    ;;
answer)
    # A helper is asked once the loss of the link was noticed.
    alone
    echo "$2" >$at/answer
    while [ -e $at/asked ]; do sleep 0.1; done
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        frozen || break
        sleep 0.2
    done
    ;;
promote)
    (
        outlive
        if $admin primary cal; then echo promoted; else echo refused; fi >$at/promoting
        mv $at/promoting $at/promoted
    ) </dev/null >/dev/null 2>&1 &
    promotion
    ;;
promotion) promotion ;;
demote) $admin secondary cal ;;
leave)
    $admin disconnect cal
    drbdsetup detach --force 7
    drbdsetup resume-io 7
    retry $admin secondary cal
    $admin down cal
    ;;
return)
    nft delete table inet cal
    $admin up cal
    link
    ;;
discard)
    $admin disconnect cal 2>/dev/null || true
    $admin connect --discard-my-data cal
    ;;
connect)
    $admin disconnect cal 2>/dev/null || true
    $admin connect cal
    link
    ;;
remove)
    lvremove -qq -fy dyad/cal
    printf %s /usr/bin/true >/sys/module/drbd/parameters/usermode_helper
    ;;
esac
