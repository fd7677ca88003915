//! docker-compose 1: its `config` prints YAML, and does not say the project's name.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};

use super::{Question, Target, tags};
use crate::command::describe;
use crate::yaml::{Node, Yaml};

/// The files that docker-compose looks for, here and in the folders above (`config/config.py`).
const FILES: [&str; 4] =
    ["docker-compose.yml", "docker-compose.yaml", "compose.yml", "compose.yaml"];

pub(super) fn find(question: &Question<'_>) -> Result<Vec<Target>> {
    let mut words = question.words_before();
    words.push("config".into());
    let config = question.ask(&words)?;
    let unreadable = |why| {
        anyhow!("cannot find out what is built: '{}' printed no YAML: {why}", describe(&words))
    };
    let yaml = Yaml::read(&config).map_err(unreadable)?;
    let services = yaml.documents().next().and_then(|root| root.get("services"));
    let pairs = services.map(Node::pairs).unwrap_or_default();
    let is_there = |name: &&String| pairs.iter().any(|(key, _)| key.text() == Some(name));
    if let Some(name) = question.call.named.iter().find(|name| !is_there(name)) {
        bail!("no such service: {name}");
    }
    let project = project(question);
    let mut targets = Vec::new();
    for (key, service) in pairs {
        let (Some(name), Some(build)) = (key.text(), service.get("build")) else { continue };
        if !question.is_selected(name) || !is_enabled(question, service) {
            continue;
        }
        let own = service.get("image").and_then(Node::text).map(str::to_owned);
        let image = own.unwrap_or_else(|| format!("{project}_{name}"));
        targets.push(Target {
            name: name.to_owned(),
            tags: tags("service", name, [image.as_str()])?,
            others: Vec::new(),
            needs: Vec::new(),
            definition: build.to_json(),
            labelled_by: None,
        });
    }
    Ok(targets)
}

/// Returns whether one of the service's profiles is enabled, or it has none, or it is named.
fn is_enabled(question: &Question<'_>, service: Node<'_>) -> bool {
    let profiles = service.get("profiles").map(Node::items).unwrap_or_default();
    if profiles.is_empty() || !question.call.named.is_empty() {
        return true;
    }
    let given = question.call.given.iter().filter(|it| it.name == "profile");
    let mut enabled: Vec<String> = given.filter_map(|it| it.value.clone()).collect();
    if enabled.is_empty() {
        let variable = question.client.variable("COMPOSE_PROFILES").unwrap_or_default();
        enabled = variable.to_string_lossy().split(',').map(str::to_owned).collect();
    }
    profiles.iter().filter_map(|it| it.text()).any(|it| enabled.iter().any(|one| one == it))
}

/// Returns the project's name, by the rules of docker-compose's `cli/command.py`.
fn project(question: &Question<'_>) -> String {
    const VARIABLE: &str = "COMPOSE_PROJECT_NAME";
    let call = question.call;
    let folder = call.value(&["project-directory", "workdir"]).map(PathBuf::from);
    let given = call.value(&["p", "project-name"]).map(str::to_owned);
    let of_environment = |name: &str| {
        let set = question.client.variable(name).map(|it| it.to_string_lossy().into_owned());
        set.or_else(|| of_env_file(question, folder.as_deref(), name))
    };
    let named = given.or_else(|| of_environment(VARIABLE)).filter(|name| !name.is_empty());
    let of_folder = || {
        let first_file = call.given.iter().find(|it| matches!(&*it.name, "f" | "file"));
        let first_file = first_file.and_then(|it| it.value.clone()).or_else(|| {
            let files = of_environment("COMPOSE_FILE")?;
            files.split(':').next().map(str::to_owned)
        });
        let of_file = first_file.map(|file| folder_of(Path::new(&file)));
        let folder = folder.clone().or(of_file).or_else(folder_with_a_file).unwrap_or_default();
        let absolute = std::path::absolute(&folder).unwrap_or(folder);
        absolute.file_name().unwrap_or_default().to_string_lossy().into_owned()
    };
    let kept = |c: &char| matches!(c, 'a'..='z' | '0'..='9' | '_' | '-');
    named.unwrap_or_else(of_folder).to_lowercase().chars().filter(kept).collect()
}

fn folder_of(file: &Path) -> PathBuf {
    let folder = file.parent().unwrap_or(Path::new("")).to_owned();
    if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder }
}

/// Returns the nearest folder, from here upwards, with a compose file.
fn folder_with_a_file() -> Option<PathBuf> {
    let here = std::env::current_dir().ok()?;
    let has_file = |folder: &&Path| FILES.iter().any(|file| folder.join(file).is_file());
    here.ancestors().find(has_file).map(Path::to_owned)
}

/// Returns a variable of the environment file. The last line about it counts.
fn of_env_file(question: &Question<'_>, folder: Option<&Path>, name: &str) -> Option<String> {
    let file = question.call.value(&["env-file"]).unwrap_or(".env");
    let text = fs::read_to_string(folder.unwrap_or(Path::new(".")).join(file)).ok()?;
    let value = |line: &str| {
        let (key, value) = line.trim().split_once('=')?;
        let key = key.trim();
        let key = key.strip_prefix("export ").unwrap_or(key).trim_start();
        (key == name).then(|| value.trim().trim_matches(['"', '\'']).to_owned())
    };
    text.lines().filter_map(value).next_back()
}
