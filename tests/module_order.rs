//! The picture in `lib.rs` is true: modules are listed in the order of the flow, and none uses one above it.

use std::path::{Path, PathBuf};

fn sources(at: &Path) -> Vec<PathBuf> {
    if at.is_file() {
        return vec![at.to_owned()];
    }
    let entries = std::fs::read_dir(at).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| sources(&path))
        .filter(|path| path.extension().is_some_and(|e| e == "rs"))
        .collect()
}

/// The code of a file without its tests.
fn product_code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    text.split("#[cfg(test)]").next().unwrap().to_owned()
}

#[test]
fn no_module_uses_one_that_is_listed_above_it() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let lib = std::fs::read_to_string(src.join("lib.rs")).unwrap();
    let modules: Vec<&str> =
        lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    assert!(modules.len() > 10, "the list was not found: {modules:?}");
    let mut wrong = Vec::new();
    for (at, module) in modules.iter().enumerate() {
        let (file, folder) = (src.join(format!("{module}.rs")), src.join(module));
        let files = if file.exists() { sources(&file) } else { sources(&folder) };
        for path in files.iter().filter(|path| !path.to_string_lossy().contains("test")) {
            let code = product_code(path);
            for above in &modules[..at] {
                let used = code.match_indices(&format!("crate::{above}")).any(|(from, name)| {
                    !code[from + name.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_')
                });
                if used {
                    wrong.push(format!("{} uses {above}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
