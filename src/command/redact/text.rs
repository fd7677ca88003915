//! Secrets within one longer word: a script for `sh -c`, a URL, an option of buildctl.

/// Hides all that looks like a secret in a word.
pub(super) fn hide_in_text(word: &str) -> String {
    if word.contains(char::is_whitespace) {
        return hide_in_script(word);
    }
    hide_user_in_urls(&hide_secret_fields(&hide_behind_flags(word)))
}

/// Hides all that looks like a secret in a script, also if that is a single word.
pub(super) fn hide_in_script(script: &str) -> String {
    let text = hide_assignments(&hide_behind_flags(&hide_passwords_of_logins(script)));
    hide_user_in_urls(&hide_secret_fields(&text))
}

/// Hides the values of `NAME=value` in a script: of variables in front of a command, of `export`,
/// of `docker run -e`.
/// It also hides what only looks like one of these: better too much than too little.
fn hide_assignments(script: &str) -> String {
    /// Characters that may stand before a word of a script.
    const BEFORE: &str = "'\"`;&|(){}";
    let mut shown = String::with_capacity(script.len());
    let mut begins_word = true;
    let mut rest = script;
    while let Some(c) = rest.chars().next() {
        let name = if begins_word { assigned_name(rest) } else { None };
        let taken = name.map_or(c.len_utf8(), str::len);
        shown.push_str(&rest[..taken]);
        rest = &rest[taken..];
        begins_word = c.is_whitespace() || BEFORE.contains(c);
        if name.is_some() {
            let quote = quote_before(&script[..script.len() - rest.len() - taken]);
            let (hidden, after) = rest.split_at(end_of_shell_word(rest, quote));
            shown.push_str(if hidden.is_empty() { "" } else { "…" });
            rest = after;
        }
    }
    shown
}

/// Returns the start of a word that sets a variable, up to the `=`: `NAME=`, `-eNAME=`,
/// `--env=NAME=`.
fn assigned_name(word: &str) -> Option<&str> {
    let name = word.strip_prefix("--env=").or_else(|| word.strip_prefix("-e")).unwrap_or(word);
    // env(1) takes more names than a shell does.
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let length = name.find(|c| !is_part(c)).filter(|_| !name.starts_with(['-', '.']))?;
    let equals = ["+=", "="].into_iter().find(|equals| name[length..].starts_with(equals))?;
    let end = word.len() - name.len() + length + equals.len();
    (length > 0).then(|| &word[..end])
}

/// Hides the fields with secret names in lists such as `type=s3,secret_access_key=…`.
fn hide_secret_fields(text: &str) -> String {
    let is_secret = |name: &str| ["secret", "token", "password"].iter().any(|it| name.contains(it));
    let field = |part: &str| match part.split_once('=') {
        Some((name, value)) if is_secret(&name.to_ascii_lowercase()) => {
            let end = value.trim_end().len();
            format!("{name}=…{}", &value[end..])
        }
        _ => part.to_owned(),
    };
    let fields = |word: &str| {
        if word.contains(',') {
            word.split(',').map(field).collect::<Vec<_>>().join(",")
        } else {
            word.to_owned()
        }
    };
    text.split_inclusive(char::is_whitespace).map(fields).collect()
}

/// Hides the shell word after each flag of a secret in a script. Of a build argument it keeps the
/// name.
fn hide_behind_flags(text: &str) -> String {
    /// More than is ever shown of one word, in bytes.
    const ENOUGH: usize = 8192;
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((at, flag)) = next_flag(rest) {
        let (before, after) = rest.split_at(at + flag.len());
        shown.push_str(before);
        let value = behind_separators(after);
        // `"--secret=VALUE"` is one word, `"--secret" VALUE` is two.
        let quote = quote_before(&before[..at]).filter(|_| after.starts_with('='));
        shown.push_str(&after[..after.len() - value.len()]);
        if shown.len() > ENOUGH {
            // Commands of other users are shown, too, and could be made to keep us busy.
            return shown + "…";
        }
        rest = value;
        if flag_at(value).is_some() {
            continue;
        }
        // Where quotes do not match, another flag may seem to be part of the value.
        let end = end_of_shell_word(value, quote);
        let end = next_flag(value).map_or(end, |(flag, _)| flag.min(end));
        let (value, behind) = value.split_at(end);
        let has_name = ["--build-arg", "build-arg:", "--set", "--var"].contains(&flag);
        match (has_name, value.split_once('=')) {
            (true, Some((name, _))) => {
                shown.push_str(&format!("{name}=…"));
                // The quotes stay in pairs, so that what follows is read rightly.
                shown.extend(quote_before(value).filter(|&quote| name.starts_with(quote)));
            }
            // A name alone takes its value from the environment.
            (true, None) => continue,
            (false, _) => shown.push('…'),
        }
        rest = behind;
    }
    shown.push_str(rest);
    shown
}

/// Hides the password of `docker login -p PASSWORD` in a script. Elsewhere, `-p` means something
/// else.
fn hide_passwords_of_logins(script: &str) -> String {
    let mut shown = String::with_capacity(script.len());
    let mut is_login = false;
    let mut rest = script;
    while !rest.is_empty() {
        let end = end_of_shell_word(rest, None).max(1);
        let end = (end..).find(|&end| rest.is_char_boundary(end)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        rest = after;
        is_login = (is_login || word == "login") && !matches!(word, ";" | "&" | "|" | "\n");
        match word.strip_prefix("-p").filter(|_| is_login) {
            Some("") => {
                let value = after.trim_start();
                let end = end_of_shell_word(value, None);
                shown.push_str("-p");
                shown.push_str(&after[..after.len() - value.len()]);
                shown.push_str(if end == 0 { "" } else { "…" });
                rest = &value[end..];
            }
            Some(_) => shown.push_str("-p…"),
            None => shown.push_str(word),
        }
    }
    shown
}

/// Finds the next flag of a secret, and where it stands.
fn next_flag(text: &str) -> Option<(usize, &'static str)> {
    let within_word = |c: char| c == '-' || c.is_alphanumeric();
    text.match_indices(['-', 'b'])
        .filter(|(at, _)| !text[..*at].ends_with(within_word))
        .find_map(|(at, _)| flag_at(&text[at..]).map(|flag| (at, flag)))
}

/// Returns the flag of a secret at the start of `text`.
fn flag_at(text: &str) -> Option<&'static str> {
    const FLAGS: [&str; 8] = [
        "--build-arg",
        "build-arg:",
        "--set",
        "--var",
        "--secret",
        "--creds",
        "--password",
        "--token",
    ];
    // --password-stdin is another flag.
    let goes_on = |c: char| c == '-' || c == '_' || c.is_ascii_alphanumeric();
    FLAGS.into_iter().find(|flag| {
        text.strip_prefix(flag)
            .is_some_and(|rest| flag.ends_with(':') || !rest.starts_with(goes_on))
    })
}

/// Returns `text` from the first value on. A backslash at the end of a line continues it, and the
/// flag itself may have been quoted.
fn behind_separators(mut text: &str) -> &str {
    let separator = |c: char| c == '=' || c.is_whitespace();
    let unquoted = text.strip_prefix(['"', '\'']).filter(|rest| rest.starts_with(separator));
    text = unquoted.unwrap_or(text);
    while let Some(rest) = text.strip_prefix("\\\n").or_else(|| text.strip_prefix(separator)) {
        text = rest;
    }
    text
}

/// Returns the quotation mark that `text` ends with, which may have opened a shell word.
fn quote_before(text: &str) -> Option<char> {
    text.chars().next_back().filter(|c| matches!(c, '\'' | '"'))
}

/// Returns where the shell word that goes on at the start of `text` ends, in bytes, given the
/// quotation mark that is open there. It respects quotes, backslashes and `$(…)`.
fn end_of_shell_word(text: &str, mut quote: Option<char>) -> usize {
    let mut escaped = false;
    // How many `$(` are open.
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (None | Some('"'), '\\') => escaped = true,
            (None, '\'' | '"' | '`') => quote = Some(c),
            (Some(open), c) if open == c => quote = None,
            (None, '(') => depth += 1,
            (None, ')') if depth > 0 => depth -= 1,
            (None, _) if depth > 0 => {}
            (None, c) if c.is_whitespace() || matches!(c, ';' | '&' | '|' | ')') => return at,
            _ => {}
        }
    }
    text.len()
}

/// Hides the user and password in URLs: `https://user:token@host/`.
///
/// A user without a password is no secret where it is part of the address (`ssh://git@host`).
fn hide_user_in_urls(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        shown.push_str(before);
        // A quote may be part of a password, or end the URL in a script.
        let ends = |c: char| c.is_whitespace() || matches!(c, '/' | '?' | '#');
        let authority = after.find(ends).unwrap_or(after.len());
        rest = match after[..authority].rfind('@') {
            Some(user) if after[..user].contains(':') || !before.ends_with("ssh://") => {
                shown.push('…');
                &after[user..]
            }
            _ => after,
        };
    }
    shown.push_str(rest);
    shown
}
