//! Collects what the program says about itself: the commit it was built from, the recipes, and the documentation of
//! every configuration field, read from the doc comments of the configuration types.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR for build scripts"));
    write(&out.join("schema.rs"), &schema(&["src/config", "agents/src", "envs/src", "reward/src"]));
    write(&out.join("recipes.rs"), &recipes(Path::new("recipes")));
    println!("cargo::rustc-env=STEADFAST_COMMIT={}", commit());
    println!("cargo::rerun-if-changed=build.rs");
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
}

/// Commit of the checkout, or nothing outside one.
fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok().filter(|o| o.status.success())?;
        Some(String::from_utf8(output.stdout).ok()?.trim().to_string())
    };
    for file in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--git-path", file]).filter(|p| Path::new(p).exists()) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    git(&["rev-parse", "HEAD"]).unwrap_or_default()
}

/// `(name, text)` of every recipe, sorted by name: those of experiments, and those of sweeps in the folder `sweeps`.
fn recipes(directory: &Path) -> String {
    println!("cargo::rerun-if-changed={}", directory.display());
    let (mut experiments, mut sweeps) = (BTreeMap::new(), BTreeMap::new());
    for path in files(directory, "toml") {
        let name = path.file_stem().and_then(|s| s.to_str()).expect("recipe names are plain text").to_string();
        let found = if path.starts_with(directory.join("sweeps")) { &mut sweeps } else { &mut experiments };
        found.insert(name, path.canonicalize().expect("a listed file exists"));
    }
    let table = |doc: &str, constant: &str, found: &BTreeMap<String, PathBuf>| {
        let mut text = format!("/// {doc}\npub const {constant}: &[(&str, &str)] = &[\n");
        for (name, path) in found {
            writeln!(text, "    ({name:?}, include_str!({path:?})),").expect("writing to a string cannot fail");
        }
        text + "];\n"
    };
    table("Name and text of every recipe of an experiment.", "RECIPES", &experiments)
        + &table("Name and text of every recipe of a sweep.", "SWEEPS", &sweeps)
}

fn files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let entries = std::fs::read_dir(directory).unwrap_or_else(|e| panic!("cannot list {}: {e}", directory.display()));
    for entry in entries {
        let path = entry.expect("a directory entry is readable").path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

struct Source {
    directory: String,
    file: PathBuf,
    item: Item,
}

enum Item {
    Struct(syn::ItemStruct),
    Enum(syn::ItemEnum),
}

impl Source {
    fn name(&self) -> String {
        match &self.item {
            Item::Struct(s) => s.ident.to_string(),
            Item::Enum(e) => e.ident.to_string(),
        }
    }
}

/// The documentation of every type that can be read from a configuration.
fn schema(directories: &[&str]) -> String {
    let mut sources = Vec::new();
    for directory in directories {
        println!("cargo::rerun-if-changed={directory}");
        for file in files(Path::new(directory), "rs") {
            let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("cannot read {}: {e}", file.display()));
            // A file that does not parse is reported by the compiler, with a better message.
            let Ok(parsed) = syn::parse_file(&text) else { continue };
            for item in parsed.items {
                let item = match item {
                    syn::Item::Struct(s) if derives_deserialize(&s.attrs) => Item::Struct(s),
                    syn::Item::Enum(e) if derives_deserialize(&e.attrs) => Item::Enum(e),
                    _ => continue,
                };
                sources.push(Source { directory: (*directory).to_string(), file: file.clone(), item });
            }
        }
    }
    let mut text = String::from("/// Every configuration type.\npub const TYPES: &[TypeDoc] = &[\n");
    for (index, source) in sources.iter().enumerate() {
        writeln!(text, "    // {index}: {}", source.file.display()).expect("writing to a string cannot fail");
        match &source.item {
            Item::Struct(s) => {
                let fields: Vec<String> = s.fields.iter().filter_map(|f| field(f, source, &sources)).collect();
                writeln!(
                    text,
                    "    TypeDoc {{ name: {:?}, doc: {:?}, kind: Kind::Table(&[{}]) }},",
                    source.name(),
                    doc(&s.attrs),
                    fields.join(", ")
                )
            }
            Item::Enum(e) => {
                let variants: Vec<String> = e.variants.iter().map(|v| variant(v, source, &sources)).collect();
                writeln!(
                    text,
                    "    TypeDoc {{ name: {:?}, doc: {:?}, kind: Kind::Choice(&[{}]) }},",
                    source.name(),
                    doc(&e.attrs),
                    variants.join(", ")
                )
            }
        }
        .expect("writing to a string cannot fail");
    }
    text + "];\n"
}

fn field(field: &syn::Field, source: &Source, sources: &[Source]) -> Option<String> {
    let name = rename(&field.attrs).or_else(|| field.ident.as_ref().map(ToString::to_string))?;
    let (wrapper, inner) = unwrap_type(&field.ty);
    let target = inner.and_then(|i| resolve(&i, source, sources));
    Some(format!("FieldDoc {{ name: {name:?}, doc: {:?}, wrapper: Wrapper::{wrapper}, target: {target:?} }}", doc(&field.attrs)))
}

fn variant(variant: &syn::Variant, source: &Source, sources: &[Source]) -> String {
    let name = rename(&variant.attrs).unwrap_or_else(|| snake_case(&variant.ident.to_string()));
    let inner = variant.fields.iter().next().and_then(|f| unwrap_type(&f.ty).1);
    let target = inner.and_then(|i| resolve(&i, source, sources));
    format!("VariantDoc {{ name: {name:?}, doc: {:?}, target: {target:?} }}", doc(&variant.attrs))
}

/// Two types may share a name: the one in the same file wins, then the one in the same crate.
fn resolve(name: &str, from: &Source, sources: &[Source]) -> Option<usize> {
    let candidates = || sources.iter().enumerate().filter(|(_, s)| s.name() == name);
    candidates()
        .find(|(_, s)| s.file == from.file)
        .or_else(|| candidates().find(|(_, s)| s.directory == from.directory))
        .or_else(|| candidates().next())
        .map(|(i, _)| i)
}

/// `Option<T>` and `Vec<T>` are taken apart; the name is the last segment of the path.
fn unwrap_type(ty: &syn::Type) -> (&'static str, Option<String>) {
    let syn::Type::Path(path) = ty else { return ("Plain", None) };
    let Some(segment) = path.path.segments.last() else { return ("Plain", None) };
    let name = segment.ident.to_string();
    let wrapper = match name.as_str() {
        "Option" => "Optional",
        "Vec" => "List",
        _ => return ("Plain", Some(name)),
    };
    let syn::PathArguments::AngleBracketed(arguments) = &segment.arguments else { return (wrapper, None) };
    match arguments.args.first() {
        Some(syn::GenericArgument::Type(inner)) => (wrapper, unwrap_type(inner).1),
        _ => (wrapper, None),
    }
}

fn derives_deserialize(attributes: &[syn::Attribute]) -> bool {
    let mut found = false;
    for attribute in attributes.iter().filter(|a| a.path().is_ident("derive")) {
        // Errors in a derive list are the compiler's to report.
        let _ = attribute.parse_nested_meta(|meta| {
            found |= meta.path.segments.last().is_some_and(|s| s.ident == "Deserialize");
            Ok(())
        });
    }
    found
}

/// The name in `#[serde(rename = "name")]`.
fn rename(attributes: &[syn::Attribute]) -> Option<String> {
    let mut found = None;
    for attribute in attributes.iter().filter(|a| a.path().is_ident("serde")) {
        let _ = attribute.parse_nested_meta(|meta| {
            if meta.input.peek(syn::Token![=]) {
                let literal: syn::LitStr = meta.value()?.parse()?;
                if meta.path.is_ident("rename") {
                    found = Some(literal.value());
                }
            }
            Ok(())
        });
    }
    found
}

/// The doc comment as one paragraph per line.
fn doc(attributes: &[syn::Attribute]) -> String {
    let mut text = String::new();
    for attribute in attributes.iter().filter(|a| a.path().is_ident("doc")) {
        let syn::Meta::NameValue(meta) = &attribute.meta else { continue };
        let syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(line), .. }) = &meta.value else { continue };
        let line = line.value();
        let line = line.trim();
        if line.is_empty() {
            text.push('\n');
        } else {
            if !text.is_empty() && !text.ends_with('\n') {
                text.push(' ');
            }
            text.push_str(line);
        }
    }
    text.trim().to_string()
}

fn snake_case(name: &str) -> String {
    let mut text = String::new();
    for (i, c) in name.char_indices() {
        if c.is_ascii_uppercase() && i > 0 {
            text.push('_');
        }
        text.push(c.to_ascii_lowercase());
    }
    text
}
