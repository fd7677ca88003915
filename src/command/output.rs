//! Where a build sends its result: the values of `-o` and `--output`.
//!
//! See <https://docs.docker.com/build/exporters/>.

use crate::go_bool;

/// Returns whether `-o VALUE` writes to a file or folder instead of the engine or a registry.
///
/// Examples are `-o DIR`, `-o -`, `type=local`, `type=tar`, `type=oci` and `type=docker,dest=FILE`.
pub(crate) fn goes_elsewhere(output: &str) -> bool {
    match field(output, "type").as_deref() {
        Some("local" | "tar" | "oci" | "cacheonly") => true,
        Some("docker") => field(output, "dest").is_some(),
        Some(_) => false,
        // Short for type=local,dest=VALUE or type=tar,dest=-.
        None => !output.contains('='),
    }
}

/// Returns whether `-o VALUE` stands for `--load`: `type=docker`, without a file to write to.
pub(super) fn goes_to_engine(output: &str) -> bool {
    field(output, "type").is_some_and(|kind| kind == "docker") && !goes_elsewhere(output)
}

/// Returns whether `-o VALUE` pushes the image: `type=registry`, `type=image,push=true`.
pub(super) fn goes_to_registry(output: &str) -> bool {
    match field(output, "type").as_deref() {
        Some("registry") => true,
        Some("image") => field(output, "push").is_some_and(|it| go_bool::parse(&it) == Some(true)),
        _ => false,
    }
}

/// Returns the names that `-o type=image,name=VALUE` gives the image. A quoted field may list
/// several.
pub(super) fn image_names(output: &str) -> Vec<String> {
    let names = field(output, "name").unwrap_or_default();
    names.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn field(output: &str, name: &str) -> Option<String> {
    output_fields(output).into_iter().find_map(|field| {
        let (key, value) = field.split_once('=')?;
        (key.trim().eq_ignore_ascii_case(name)).then(|| value.trim().to_owned())
    })
}

/// Splits a line as buildx does: at commas, except within double quotes (RFC 4180).
pub(crate) fn output_fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut characters = line.chars().peekable();
    while let Some(c) = characters.next() {
        let Some(field) = fields.last_mut() else { break };
        match c {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                field.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            c => field.push(c),
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_that_go_to_files_are_known() {
        for output in [
            "out",
            "-",
            "type=local,dest=out",
            "type=tar,dest=x.tar",
            "type=oci,dest=x",
            "dest=x,type=docker",
            "type=cacheonly",
        ] {
            assert!(goes_elsewhere(output), "{output}");
        }
        for output in ["type=docker", "type=image", "type=image,push=true", "type=registry"] {
            assert!(!goes_elsewhere(output), "{output}");
        }
    }
}
