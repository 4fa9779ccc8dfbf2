//! The items of a source file with their doc comments. It reads what rustfmt has formatted: an item
//! begins in the first column, and a struct ends with a brace there.

/// A struct, alias, constant or static at the top level of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The paragraphs of its doc comment, each in one line.
    pub doc: Vec<String>,
    /// Its attributes, as they are written.
    pub attributes: Vec<String>,
    /// Its name.
    pub name: String,
    /// The kind of the item.
    pub kind: Kind,
}

/// The kinds of items.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A struct with named fields.
    Struct(Vec<Field>),
    /// An alias: its generic parameters and the type that it stands for.
    Alias(String),
    /// A constant or a static: its type and its value.
    Value {
        /// The type.
        of: String,
        /// The value.
        is: String,
        /// Whether it is a static.
        is_static: bool,
    },
}

/// A field of a struct.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// The paragraphs of its doc comment.
    pub doc: Vec<String>,
    /// Its name.
    pub name: String,
    /// Its type.
    pub of: String,
}

/// The content of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct File {
    /// The paragraphs of the comment about the file itself.
    pub about: Vec<String>,
    /// Its items, less those of its tests.
    pub items: Vec<Item>,
    /// Imports with another name: the other name, and the real one.
    pub renamed: Vec<(String, String)>,
}

/// Reads a file.
pub fn parse(text: &str) -> File {
    let mut file = File::default();
    let mut about = Vec::new();
    let mut doc = Vec::new();
    let mut attributes = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line == "#[cfg(test)]" {
            break;
        }
        if let Some(comment) = line.strip_prefix("//!") {
            about.push(comment.trim());
        } else if let Some(comment) = line.strip_prefix("///") {
            doc.push(comment.trim());
        } else if line.starts_with("#[") {
            attributes.push(line.to_owned());
        } else {
            let doc = paragraphs(&std::mem::take(&mut doc));
            let attributes = std::mem::take(&mut attributes);
            let bare = without_visibility(line);
            if let Some(name) =
                bare.strip_prefix("struct ").and_then(|rest| rest.strip_suffix(" {"))
            {
                let kind = Kind::Struct(fields(&mut lines));
                file.items.push(Item { doc, attributes, name: name.to_owned(), kind });
            } else if let Some((name, kind)) = one_line(&statement(bare, &mut lines)) {
                file.items.push(Item { doc, attributes, name, kind });
            }
        }
    }
    file.about = paragraphs(&about);
    file.renamed = renamed(text);
    file
}

/// Joins the lines of each paragraph.
fn paragraphs(lines: &[&str]) -> Vec<String> {
    let paragraphs = lines.split(|line| line.is_empty());
    paragraphs.map(|lines| lines.join(" ")).filter(|paragraph| !paragraph.is_empty()).collect()
}

fn without_visibility(line: &str) -> &str {
    let Some(rest) = line.strip_prefix("pub") else { return line };
    match rest.strip_prefix('(').and_then(|rest| rest.split_once(") ")) {
        Some((_, rest)) => rest,
        None => rest.strip_prefix(' ').unwrap_or(line),
    }
}

/// A constant, alias or static may continue over several lines. Other lines stay unchanged.
fn statement<'a>(first: &str, lines: &mut impl Iterator<Item = &'a str>) -> String {
    let mut statement = first.to_owned();
    if ["const ", "type ", "static "].iter().any(|word| first.starts_with(word))
        && !first.starts_with("const fn ")
    {
        while !statement.ends_with(';') {
            let Some(line) = lines.next() else { break };
            statement.push(' ');
            statement.push_str(line.trim());
        }
    }
    statement
}

fn one_line(statement: &str) -> Option<(String, Kind)> {
    let statement = statement.strip_suffix(';')?;
    let (word, rest) = statement.split_once(' ')?;
    match word {
        "type" => {
            let (name, is) = rest.split_once(" = ")?;
            let name = name.split('<').next()?;
            Some((name.to_owned(), Kind::Alias(is.to_owned())))
        }
        "const" | "static" => {
            let (declared, is) = rest.split_once(" = ")?;
            let (name, of) = declared.split_once(": ")?;
            let is_static = word == "static";
            let kind = Kind::Value { of: of.to_owned(), is: is.to_owned(), is_static };
            Some((name.to_owned(), kind))
        }
        _ => None,
    }
}

/// The fields up to the struct's closing brace.
fn fields<'a>(lines: &mut impl Iterator<Item = &'a str>) -> Vec<Field> {
    let mut fields = Vec::new();
    let mut doc = Vec::new();
    for line in lines.take_while(|line| *line != "}").map(str::trim) {
        if let Some(comment) = line.strip_prefix("///") {
            doc.push(comment.trim());
        } else if let Some((name, of)) =
            line.strip_suffix(',').and_then(|line| without_visibility(line).split_once(": "))
        {
            let doc = paragraphs(&std::mem::take(&mut doc));
            fields.push(Field { doc, name: name.to_owned(), of: of.to_owned() });
        }
    }
    fields
}

/// `REAL as OTHER`, as it stands in imports.
fn renamed(text: &str) -> Vec<(String, String)> {
    let words: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| line.split(|c: char| !(c.is_alphanumeric() || c == '_')))
        .filter(|word| !word.is_empty())
        .collect();
    let pairs = words.windows(3).filter(|words| words[1] == "as");
    pairs.map(|words| (words[2].to_owned(), words[0].to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
//! About flows.
//!
//! More of it.

use crate::{LIMIT as MOST, Other};

/// Key of map `flows`: a tuple
/// as it arrives.
///
/// Another paragraph.
#[derive(Clone)]
#[repr(C)]
pub struct Key {
    /// The source.
    pub saddr: Be32,
    /// The digest.
    pub(crate) scope: [u8; 3],
}

impl Key {
    /// No item.
    pub const fn through(self) -> Self {
        Self { ..self }
    }
}

/// Most entries.
pub const LIMIT: usize = 1 << 4;

#[btf_map(name = \"flows\")]
static FLOWS: LruHashMap<Key, Flow, MOST> =
    LruHashMap::new();

type Table<K, V> = HashMap<K, V, 1>;

#[cfg(test)]
mod tests {
    const NOT_THIS: u32 = 1;
}
";

    fn item<'a>(file: &'a File, name: &str) -> &'a Item {
        file.items.iter().find(|item| item.name == name).unwrap()
    }

    #[test]
    fn structs_have_the_paragraphs_and_fields_of_their_source() {
        let file = parse(TEXT);
        assert_eq!(file.about, ["About flows.", "More of it."]);
        let key = item(&file, "Key");
        assert_eq!(key.doc, ["Key of map `flows`: a tuple as it arrives.", "Another paragraph."]);
        let Kind::Struct(fields) = &key.kind else { panic!("{key:?}") };
        let names: Vec<_> = fields.iter().map(|field| (&*field.name, &*field.of)).collect();
        assert_eq!(names, [("saddr", "Be32"), ("scope", "[u8; 3]")]);
        assert_eq!(fields[1].doc, ["The digest."]);
    }

    #[test]
    fn constants_aliases_and_statics_may_go_on_for_lines_and_methods_are_none() {
        let file = parse(TEXT);
        let names: Vec<_> = file.items.iter().map(|item| &*item.name).collect();
        assert_eq!(names, ["Key", "LIMIT", "FLOWS", "Table"]);
        let flows = item(&file, "FLOWS");
        assert_eq!(flows.attributes, ["#[btf_map(name = \"flows\")]"]);
        let Kind::Value { of, is_static: true, .. } = &flows.kind else { panic!("{flows:?}") };
        assert_eq!(of, "LruHashMap<Key, Flow, MOST>");
        assert_eq!(item(&file, "Table").kind, Kind::Alias("HashMap<K, V, 1>".into()));
    }

    #[test]
    fn what_is_imported_under_another_name_is_known_by_both() {
        assert_eq!(parse(TEXT).renamed, [("MOST".to_owned(), "LIMIT".to_owned())]);
    }
}
