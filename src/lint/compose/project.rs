//! The name of a compose project. Images that have no name in the file are named after it.

use std::fs;
use std::path::Path;

/// Returns the project of a compose file. `COMPOSE_PROJECT_NAME` counts first, in the environment or
/// in the `.env` beside the file. Then come the file's `name:` (`written`) and the folder
/// (`withNamePrecedenceLoad` in compose-go's cli/options.go).
pub(super) fn name(compose_file: &Path, written: Option<&str>) -> String {
    let folder = compose_file.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let in_environment = std::env::var(VARIABLE).ok().filter(|name| !name.is_empty());
    let in_file = || of_env_file(&fs::read_to_string(folder.join(".env")).ok()?);
    if let Some(name) = in_environment.or_else(in_file) {
        return name;
    }
    match written {
        Some(written) => written.to_owned(),
        None => {
            let folder = fs::canonicalize(folder).unwrap_or_default();
            normalized(&folder.file_name().unwrap_or_default().to_string_lossy())
        }
    }
}

const VARIABLE: &str = "COMPOSE_PROJECT_NAME";

/// Makes a name out of a folder's, as compose-go's `NormalizeProjectName` does.
fn normalized(name: &str) -> String {
    let name = name.to_lowercase();
    let kept: String =
        name.chars().filter(|c| matches!(c, 'a'..='z' | '0'..='9' | '_' | '-')).collect();
    kept.trim_start_matches(['_', '-']).to_owned()
}

/// Returns the project's name from an environment file. The last one counts.
fn of_env_file(text: &str) -> Option<String> {
    let value = |line: &str| {
        let line = line.trim_start();
        let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
        let value = line.strip_prefix(VARIABLE)?.trim_start().strip_prefix(['=', ':'])?.trim();
        let quoted = ['"', '\''].iter().find_map(|quote| {
            let (value, _) = value.strip_prefix(*quote)?.split_once(*quote)?;
            Some(value)
        });
        let plain = || value.split(" #").next().unwrap_or_default().trim_end();
        Some(quoted.unwrap_or_else(plain).to_owned())
    };
    text.lines().filter_map(value).next_back().filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_becomes_a_project_as_in_compose() {
        assert_eq!(normalized("My Comp.dir_2"), "mycompdir_2");
        assert_eq!(normalized("_-x"), "x");
    }

    #[test]
    fn environment_file_names_the_project() {
        let of = |text| of_env_file(text);
        assert_eq!(of("A=1\nCOMPOSE_PROJECT_NAME=n # why\n").as_deref(), Some("n"));
        assert_eq!(of("export COMPOSE_PROJECT_NAME = \"n\"\n").as_deref(), Some("n"));
        assert_eq!(of("#COMPOSE_PROJECT_NAME=n\nCOMPOSE_PROJECT_NAMES=n\n"), None);
        assert_eq!(of("COMPOSE_PROJECT_NAME=\n"), None);
    }
}
