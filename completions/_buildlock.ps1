
using namespace System.Management.Automation
using namespace System.Management.Automation.Language

Register-ArgumentCompleter -Native -CommandName 'buildlock' -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)

    $commandElements = $commandAst.CommandElements
    $command = @(
        'buildlock'
        for ($i = 1; $i -lt $commandElements.Count; $i++) {
            $element = $commandElements[$i]
            if ($element -isnot [StringConstantExpressionAst] -or
                $element.StringConstantType -ne [StringConstantType]::BareWord -or
                $element.Value.StartsWith('-') -or
                $element.Value -eq $wordToComplete) {
                break
        }
        $element.Value
    }) -join ';'

    $completions = @(switch ($command) {
        'buildlock' {
            [CompletionResult]::new('-t', '-t', [CompletionResultType]::ParameterName, 'Image that the build command builds (repeatable)')
            [CompletionResult]::new('--tag', '--tag', [CompletionResultType]::ParameterName, 'Image that the build command builds (repeatable)')
            [CompletionResult]::new('-w', '-w', [CompletionResultType]::ParameterName, 'Longest wait for all locks, and for a slot of --max-builds')
            [CompletionResult]::new('--timeout', '--timeout', [CompletionResultType]::ParameterName, 'Longest wait for all locks, and for a slot of --max-builds')
            [CompletionResult]::new('--build-timeout', '--build-timeout', [CompletionResultType]::ParameterName, 'End a build that runs longer, with all its descendants')
            [CompletionResult]::new('-k', '-k', [CompletionResultType]::ParameterName, 'Time between SIGTERM and SIGKILL')
            [CompletionResult]::new('--kill-after', '--kill-after', [CompletionResultType]::ParameterName, 'Time between SIGTERM and SIGKILL')
            [CompletionResult]::new('-E', '-E ', [CompletionResultType]::ParameterName, 'Exit status when a lock or a slot was not acquired in time')
            [CompletionResult]::new('--conflict-exit-code', '--conflict-exit-code', [CompletionResultType]::ParameterName, 'Exit status when a lock or a slot was not acquired in time')
            [CompletionResult]::new('--if-changed', '--if-changed', [CompletionResultType]::ParameterName, 'Build if the image was not built from the current inputs')
            [CompletionResult]::new('--inputs', '--inputs', [CompletionResultType]::ParameterName, 'File or folder that the build command reads, for --if-changed (repeatable)')
            [CompletionResult]::new('--on-failure', '--on-failure', [CompletionResultType]::ParameterName, 'What a waiter does when the build that it waited for failed')
            [CompletionResult]::new('--lock', '--lock', [CompletionResultType]::ParameterName, 'Another exclusive lock, for a shared resource that is not an image (repeatable)')
            [CompletionResult]::new('--share', '--share', [CompletionResultType]::ParameterName, 'The same lock, shared with other callers that say --share (repeatable)')
            [CompletionResult]::new('--max-builds', '--max-builds', [CompletionResultType]::ParameterName, 'Build only if fewer than N builds run that say --max-builds, whatever they build')
            [CompletionResult]::new('--cache', '--cache', [CompletionResultType]::ParameterName, 'Build cache that the build command writes (repeatable)')
            [CompletionResult]::new('--engine', '--engine', [CompletionResultType]::ParameterName, 'Engine where images are looked up')
            [CompletionResult]::new('--check', '--check', [CompletionResultType]::ParameterName, 'Where the image must be: local, registry, or a command that checks')
            [CompletionResult]::new('--lock-dir', '--lock-dir', [CompletionResultType]::ParameterName, 'The lock folder, where lock files live')
            [CompletionResult]::new('--store', '--store', [CompletionResultType]::ParameterName, 'Where locks live: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://')
            [CompletionResult]::new('--log-format', '--log-format', [CompletionResultType]::ParameterName, 'How to write the log, to stderr')
            [CompletionResult]::new('--color', '--color', [CompletionResultType]::ParameterName, 'When to use colours and a live line while waiting')
            [CompletionResult]::new('-f', '-f', [CompletionResultType]::ParameterName, 'Build even if the image exists; still one at a time')
            [CompletionResult]::new('--force', '--force', [CompletionResultType]::ParameterName, 'Build even if the image exists; still one at a time')
            [CompletionResult]::new('--each', '--each', [CompletionResultType]::ParameterName, 'Build each image of docker compose build or docker buildx bake by itself, at the same time')
            [CompletionResult]::new('--fail-fast', '--fail-fast', [CompletionResultType]::ParameterName, 'With --each, end all other builds as soon as one has failed')
            [CompletionResult]::new('--no-retry', '--no-retry', [CompletionResultType]::ParameterName, 'After a failure with a shared cache, do not run the build command again alone')
            [CompletionResult]::new('-q', '-q', [CompletionResultType]::ParameterName, 'Only warnings and errors')
            [CompletionResult]::new('--quiet', '--quiet', [CompletionResultType]::ParameterName, 'Only warnings and errors')
            [CompletionResult]::new('-v', '-v', [CompletionResultType]::ParameterName, 'Say more')
            [CompletionResult]::new('--verbose', '--verbose', [CompletionResultType]::ParameterName, 'Say more')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('-V', '-V ', [CompletionResultType]::ParameterName, 'Print version')
            [CompletionResult]::new('--version', '--version', [CompletionResultType]::ParameterName, 'Print version')
            [CompletionResult]::new('status', 'status', [CompletionResultType]::ParameterValue, 'List held locks: tag, holder, since when, number of waiters, command')
            [CompletionResult]::new('path', 'path', [CompletionResultType]::ParameterValue, 'Print the path of a lock file, for scripts in other languages')
            [CompletionResult]::new('prune', 'prune', [CompletionResultType]::ParameterValue, 'Remove lock files that nobody holds or waits for')
            [CompletionResult]::new('cache', 'cache', [CompletionResultType]::ParameterValue, 'List or forget the build caches that are known to be warm')
            [CompletionResult]::new('lint', 'lint', [CompletionResultType]::ParameterValue, 'Find what makes builds race: cache mounts without a lock, images that are built twice')
            [CompletionResult]::new('fingerprint', 'fingerprint', [CompletionResultType]::ParameterValue, 'Print the fingerprint of what a build command reads, as --if-changed computes it')
            [CompletionResult]::new('completions', 'completions', [CompletionResultType]::ParameterValue, 'Print a completion script')
            [CompletionResult]::new('man', 'man', [CompletionResultType]::ParameterValue, 'Print a man page')
            [CompletionResult]::new('help', 'help', [CompletionResultType]::ParameterValue, 'Print this message or the help of the given subcommand(s)')
            break
        }
        'buildlock;status' {
            [CompletionResult]::new('--lock-dir', '--lock-dir', [CompletionResultType]::ParameterName, 'The lock folder, where lock files live')
            [CompletionResult]::new('--store', '--store', [CompletionResultType]::ParameterName, 'Where locks live: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://')
            [CompletionResult]::new('--log-format', '--log-format', [CompletionResultType]::ParameterName, 'How to write the log, to stderr')
            [CompletionResult]::new('--color', '--color', [CompletionResultType]::ParameterName, 'When to use colours and a live line while waiting')
            [CompletionResult]::new('--json', '--json', [CompletionResultType]::ParameterName, 'Print a JSON array')
            [CompletionResult]::new('-q', '-q', [CompletionResultType]::ParameterName, 'Only warnings and errors')
            [CompletionResult]::new('--quiet', '--quiet', [CompletionResultType]::ParameterName, 'Only warnings and errors')
            [CompletionResult]::new('-v', '-v', [CompletionResultType]::ParameterName, 'Say more')
            [CompletionResult]::new('--verbose', '--verbose', [CompletionResultType]::ParameterName, 'Say more')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'buildlock;path' {
            [CompletionResult]::new('--lock', '--lock', [CompletionResultType]::ParameterName, 'Name of a lock (--lock), instead of a tag')
            [CompletionResult]::new('--lock-dir', '--lock-dir', [CompletionResultType]::ParameterName, 'The lock folder, where lock files live')
            [CompletionResult]::new('--store', '--store', [CompletionResultType]::ParameterName, 'Where locks live: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://')
            [CompletionResult]::new('--log-format', '--log-format', [CompletionResultType]::ParameterName, 'How to write the log, to stderr')
            [CompletionResult]::new('--color', '--color', [CompletionResultType]::ParameterName, 'When to use colours and a live line while waiting')
            [CompletionResult]::new('-q', '-q', [CompletionResultType]::ParameterName, 'Only warnings and errors')
            [CompletionResult]::new('--quiet', '--quiet', [CompletionResultType]::ParameterName, 'Only warnings and errors')
            [CompletionResult]::new('-v', '-v', [CompletionResultType]::ParameterName, 'Say more')
            [CompletionResult]::new('--verbose', '--verbose', [CompletionResultType]::ParameterName, 'Say more')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'buildlock;prune' {
            [CompletionResult]::new('--lock-dir', '--lock-dir', [CompletionResultType]::ParameterName, 'The lock folder, where lock files live')
            [CompletionResult]::new('--store', '--store', [CompletionResultType]::ParameterName, 'Where locks live: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://')
            [CompletionResult]::new('--log-format', '--log-format', [CompletionResultType]::ParameterName, 'How to write the log, to stderr')
            [CompletionResult]::new('--color', '--color', [CompletionResultType]::ParameterName, 'When to use colours and a live line while waiting')
            [CompletionResult]::new('-q', '-q', [CompletionResultType]::ParameterName, 'Only warnings and errors')
            [CompletionResult]::new('--quiet', '--quiet', [CompletionResultType]::ParameterName, 'Only warnings and errors')
            [CompletionResult]::new('-v', '-v', [CompletionResultType]::ParameterName, 'Say more')
            [CompletionResult]::new('--verbose', '--verbose', [CompletionResultType]::ParameterName, 'Say more')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'buildlock;cache' {
            [CompletionResult]::new('--lock-dir', '--lock-dir', [CompletionResultType]::ParameterName, 'The lock folder, where lock files live')
            [CompletionResult]::new('--store', '--store', [CompletionResultType]::ParameterName, 'Where locks live: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://')
            [CompletionResult]::new('--log-format', '--log-format', [CompletionResultType]::ParameterName, 'How to write the log, to stderr')
            [CompletionResult]::new('--color', '--color', [CompletionResultType]::ParameterName, 'When to use colours and a live line while waiting')
            [CompletionResult]::new('-q', '-q', [CompletionResultType]::ParameterName, 'Only warnings and errors')
            [CompletionResult]::new('--quiet', '--quiet', [CompletionResultType]::ParameterName, 'Only warnings and errors')
            [CompletionResult]::new('-v', '-v', [CompletionResultType]::ParameterName, 'Say more')
            [CompletionResult]::new('--verbose', '--verbose', [CompletionResultType]::ParameterName, 'Say more')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('ls', 'ls', [CompletionResultType]::ParameterValue, 'List the caches that are known to be warm: ID, since when, for which files')
            [CompletionResult]::new('forget', 'forget', [CompletionResultType]::ParameterValue, 'Forget that a cache is warm, so that the next build with it runs alone')
            [CompletionResult]::new('help', 'help', [CompletionResultType]::ParameterValue, 'Print this message or the help of the given subcommand(s)')
            break
        }
        'buildlock;cache;ls' {
            [CompletionResult]::new('--lock-dir', '--lock-dir', [CompletionResultType]::ParameterName, 'The lock folder, where lock files live')
            [CompletionResult]::new('--store', '--store', [CompletionResultType]::ParameterName, 'Where locks live: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://')
            [CompletionResult]::new('--log-format', '--log-format', [CompletionResultType]::ParameterName, 'How to write the log, to stderr')
            [CompletionResult]::new('--color', '--color', [CompletionResultType]::ParameterName, 'When to use colours and a live line while waiting')
            [CompletionResult]::new('--json', '--json', [CompletionResultType]::ParameterName, 'Print a JSON array')
            [CompletionResult]::new('-q', '-q', [CompletionResultType]::ParameterName, 'Only warnings and errors')
            [CompletionResult]::new('--quiet', '--quiet', [CompletionResultType]::ParameterName, 'Only warnings and errors')
            [CompletionResult]::new('-v', '-v', [CompletionResultType]::ParameterName, 'Say more')
            [CompletionResult]::new('--verbose', '--verbose', [CompletionResultType]::ParameterName, 'Say more')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'buildlock;cache;forget' {
            [CompletionResult]::new('--lock-dir', '--lock-dir', [CompletionResultType]::ParameterName, 'The lock folder, where lock files live')
            [CompletionResult]::new('--store', '--store', [CompletionResultType]::ParameterName, 'Where locks live: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://')
            [CompletionResult]::new('--log-format', '--log-format', [CompletionResultType]::ParameterName, 'How to write the log, to stderr')
            [CompletionResult]::new('--color', '--color', [CompletionResultType]::ParameterName, 'When to use colours and a live line while waiting')
            [CompletionResult]::new('-q', '-q', [CompletionResultType]::ParameterName, 'Only warnings and errors')
            [CompletionResult]::new('--quiet', '--quiet', [CompletionResultType]::ParameterName, 'Only warnings and errors')
            [CompletionResult]::new('-v', '-v', [CompletionResultType]::ParameterName, 'Say more')
            [CompletionResult]::new('--verbose', '--verbose', [CompletionResultType]::ParameterName, 'Say more')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'buildlock;cache;help' {
            [CompletionResult]::new('ls', 'ls', [CompletionResultType]::ParameterValue, 'List the caches that are known to be warm: ID, since when, for which files')
            [CompletionResult]::new('forget', 'forget', [CompletionResultType]::ParameterValue, 'Forget that a cache is warm, so that the next build with it runs alone')
            [CompletionResult]::new('help', 'help', [CompletionResultType]::ParameterValue, 'Print this message or the help of the given subcommand(s)')
            break
        }
        'buildlock;cache;help;ls' {
            break
        }
        'buildlock;cache;help;forget' {
            break
        }
        'buildlock;cache;help;help' {
            break
        }
        'buildlock;lint' {
            [CompletionResult]::new('--format', '--format', [CompletionResultType]::ParameterName, 'How to print the findings')
            [CompletionResult]::new('--lock-dir', '--lock-dir', [CompletionResultType]::ParameterName, 'The lock folder, where lock files live')
            [CompletionResult]::new('--store', '--store', [CompletionResultType]::ParameterName, 'Where locks live: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://')
            [CompletionResult]::new('--log-format', '--log-format', [CompletionResultType]::ParameterName, 'How to write the log, to stderr')
            [CompletionResult]::new('--color', '--color', [CompletionResultType]::ParameterName, 'When to use colours and a live line while waiting')
            [CompletionResult]::new('--fix', '--fix', [CompletionResultType]::ParameterName, 'Add sharing=locked to the cache mounts that race, and change nothing else')
            [CompletionResult]::new('--strict', '--strict', [CompletionResultType]::ParameterName, 'Treat notes as errors: caches of tools that buildlock does not know')
            [CompletionResult]::new('-q', '-q', [CompletionResultType]::ParameterName, 'Only warnings and errors')
            [CompletionResult]::new('--quiet', '--quiet', [CompletionResultType]::ParameterName, 'Only warnings and errors')
            [CompletionResult]::new('-v', '-v', [CompletionResultType]::ParameterName, 'Say more')
            [CompletionResult]::new('--verbose', '--verbose', [CompletionResultType]::ParameterName, 'Say more')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'buildlock;fingerprint' {
            [CompletionResult]::new('-t', '-t', [CompletionResultType]::ParameterName, 'Image that the build command builds (repeatable)')
            [CompletionResult]::new('--tag', '--tag', [CompletionResultType]::ParameterName, 'Image that the build command builds (repeatable)')
            [CompletionResult]::new('--inputs', '--inputs', [CompletionResultType]::ParameterName, 'File or folder that the build command reads (repeatable)')
            [CompletionResult]::new('--engine', '--engine', [CompletionResultType]::ParameterName, 'Engine where images are looked up')
            [CompletionResult]::new('--check', '--check', [CompletionResultType]::ParameterName, 'Where the image must be: local or registry')
            [CompletionResult]::new('--lock-dir', '--lock-dir', [CompletionResultType]::ParameterName, 'The lock folder, where lock files live')
            [CompletionResult]::new('--store', '--store', [CompletionResultType]::ParameterName, 'Where locks live: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://')
            [CompletionResult]::new('--log-format', '--log-format', [CompletionResultType]::ParameterName, 'How to write the log, to stderr')
            [CompletionResult]::new('--color', '--color', [CompletionResultType]::ParameterName, 'When to use colours and a live line while waiting')
            [CompletionResult]::new('--diff', '--diff', [CompletionResultType]::ParameterName, 'Say in what the inputs differ from those of the image')
            [CompletionResult]::new('-q', '-q', [CompletionResultType]::ParameterName, 'Only warnings and errors')
            [CompletionResult]::new('--quiet', '--quiet', [CompletionResultType]::ParameterName, 'Only warnings and errors')
            [CompletionResult]::new('-v', '-v', [CompletionResultType]::ParameterName, 'Say more')
            [CompletionResult]::new('--verbose', '--verbose', [CompletionResultType]::ParameterName, 'Say more')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'buildlock;completions' {
            [CompletionResult]::new('--lock-dir', '--lock-dir', [CompletionResultType]::ParameterName, 'The lock folder, where lock files live')
            [CompletionResult]::new('--store', '--store', [CompletionResultType]::ParameterName, 'Where locks live: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://')
            [CompletionResult]::new('--log-format', '--log-format', [CompletionResultType]::ParameterName, 'How to write the log, to stderr')
            [CompletionResult]::new('--color', '--color', [CompletionResultType]::ParameterName, 'When to use colours and a live line while waiting')
            [CompletionResult]::new('-q', '-q', [CompletionResultType]::ParameterName, 'Only warnings and errors')
            [CompletionResult]::new('--quiet', '--quiet', [CompletionResultType]::ParameterName, 'Only warnings and errors')
            [CompletionResult]::new('-v', '-v', [CompletionResultType]::ParameterName, 'Say more')
            [CompletionResult]::new('--verbose', '--verbose', [CompletionResultType]::ParameterName, 'Say more')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'buildlock;man' {
            [CompletionResult]::new('--lock-dir', '--lock-dir', [CompletionResultType]::ParameterName, 'The lock folder, where lock files live')
            [CompletionResult]::new('--store', '--store', [CompletionResultType]::ParameterName, 'Where locks live: file:[DIR], etcd://HOST:PORT[,HOST:PORT...]/PREFIX[?ttl=15s], or etcds://')
            [CompletionResult]::new('--log-format', '--log-format', [CompletionResultType]::ParameterName, 'How to write the log, to stderr')
            [CompletionResult]::new('--color', '--color', [CompletionResultType]::ParameterName, 'When to use colours and a live line while waiting')
            [CompletionResult]::new('-q', '-q', [CompletionResultType]::ParameterName, 'Only warnings and errors')
            [CompletionResult]::new('--quiet', '--quiet', [CompletionResultType]::ParameterName, 'Only warnings and errors')
            [CompletionResult]::new('-v', '-v', [CompletionResultType]::ParameterName, 'Say more')
            [CompletionResult]::new('--verbose', '--verbose', [CompletionResultType]::ParameterName, 'Say more')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'buildlock;help' {
            [CompletionResult]::new('status', 'status', [CompletionResultType]::ParameterValue, 'List held locks: tag, holder, since when, number of waiters, command')
            [CompletionResult]::new('path', 'path', [CompletionResultType]::ParameterValue, 'Print the path of a lock file, for scripts in other languages')
            [CompletionResult]::new('prune', 'prune', [CompletionResultType]::ParameterValue, 'Remove lock files that nobody holds or waits for')
            [CompletionResult]::new('cache', 'cache', [CompletionResultType]::ParameterValue, 'List or forget the build caches that are known to be warm')
            [CompletionResult]::new('lint', 'lint', [CompletionResultType]::ParameterValue, 'Find what makes builds race: cache mounts without a lock, images that are built twice')
            [CompletionResult]::new('fingerprint', 'fingerprint', [CompletionResultType]::ParameterValue, 'Print the fingerprint of what a build command reads, as --if-changed computes it')
            [CompletionResult]::new('completions', 'completions', [CompletionResultType]::ParameterValue, 'Print a completion script')
            [CompletionResult]::new('man', 'man', [CompletionResultType]::ParameterValue, 'Print a man page')
            [CompletionResult]::new('help', 'help', [CompletionResultType]::ParameterValue, 'Print this message or the help of the given subcommand(s)')
            break
        }
        'buildlock;help;status' {
            break
        }
        'buildlock;help;path' {
            break
        }
        'buildlock;help;prune' {
            break
        }
        'buildlock;help;cache' {
            [CompletionResult]::new('ls', 'ls', [CompletionResultType]::ParameterValue, 'List the caches that are known to be warm: ID, since when, for which files')
            [CompletionResult]::new('forget', 'forget', [CompletionResultType]::ParameterValue, 'Forget that a cache is warm, so that the next build with it runs alone')
            break
        }
        'buildlock;help;cache;ls' {
            break
        }
        'buildlock;help;cache;forget' {
            break
        }
        'buildlock;help;lint' {
            break
        }
        'buildlock;help;fingerprint' {
            break
        }
        'buildlock;help;completions' {
            break
        }
        'buildlock;help;man' {
            break
        }
        'buildlock;help;help' {
            break
        }
    })

    $completions.Where{ $_.CompletionText -like "$wordToComplete*" } |
        Sort-Object -Property ListItemText
}
