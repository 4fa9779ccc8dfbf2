//! docs/maps.md: the maps from the programs' declarations, with the text of the doc comments.
//!
//! Kind, size, key and value come from the declarations in `overlay-ebpf`
//! (`#[btf_map(name = ..)]`). The words come from doc comments in `overlay-common` whose paragraphs
//! begin with one of
//!
//! - ``Map `name`, hash by VNI (`u32`): what it says. Written by the agent; read by ..``
//! - ``Maps `name` and `other`, LRU hashes: ..``
//! - ``Key of map `name`: ..``
//! - ``Value of map `name`, per-CPU array ..``
//! - ``Entries of map `name`, a program array: ..``
//!
//! A map that only the programs use needs none of these: its value's own comment describes it.

use std::{fmt::Write as _, path::PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use overlay_common::LAYOUT_VERSION;

use super::source::{self, Field, File, Item, Kind};
use crate::tree;

/// The path of the page.
pub const PAGE: &str = "docs/maps.md";

/// Everything that is read.
struct Sources {
    /// The files that both sides share.
    common: Vec<(PathBuf, File)>,
    /// The programs.
    programs: Vec<(PathBuf, File)>,
}

/// A map.
#[derive(Debug)]
struct Map {
    name: String,
    /// `LRU hash`, ..
    kind: &'static str,
    /// The sentence on how many entries it has room for, or bytes; empty for one entry.
    size: String,
    key: Option<String>,
    value: Option<String>,
    /// Index in [`Sources::common`] of the file that describes it.
    file: Option<usize>,
    /// Its description.
    text: Vec<String>,
    /// The descriptions of its key and of its value, if they have their own paragraphs.
    of_key: Option<String>,
    of_value: Option<String>,
}

/// The page.
///
/// # Errors
/// A file cannot be read; a map is not described; a description is of no map.
pub fn page() -> Result<String> {
    let read = |folder: &str| -> Result<Vec<(PathBuf, File)>> {
        let files = tree::files(&["rs"])?.into_iter().filter(|path| path.starts_with(folder));
        files.map(|path| Ok((path.clone(), source::parse(&tree::read(&path)?)))).collect()
    };
    render(&Sources { common: read("overlay-common/src")?, programs: read("overlay-ebpf/src")? })
}

fn render(sources: &Sources) -> Result<String> {
    let maps = sources.maps()?;
    let mut page = format!(
        "# Maps\n\n\
         The programs and the agent share these maps. They are pinned in \
         `/sys/fs/bpf/overlay/v{LAYOUT_VERSION}/maps/`; the number is the version of the map layout \
         ([extending.md](extending.md)).\n\
         The maps carry type information, so bpftool prints field names:\n\n    \
         bpftool map dump pinned /sys/fs/bpf/overlay/v{LAYOUT_VERSION}/maps/endpoints\n\n\
         `overlay bpf --help` lists the tables that `overlay` prints with names. Unless a field says \
         otherwise, integers are in host byte order, and addresses and ports are in network byte order.\n\n\
         [reasons.md](reasons.md) lists the reasons by which `counters` and the other counters are \
         indexed.\n\n"
    );
    page.push_str("| map | kind | key | value | what it has |\n|---|---|---|---|---|\n");
    for map in &maps {
        let code = |of: &Option<String>| {
            of.as_ref().map_or_else(String::new, |of| format!("`{}`", cell(of)))
        };
        let Map { name, kind, .. } = map;
        let (key, value, summary) = (code(&map.key), code(&map.value), cell(&map.summary()));
        writeln!(page, "| [`{name}`](#{name}) | {kind} | {key} | {value} | {summary} |")?;
    }
    let mut shown = Vec::new();
    for file in files_in_order(&maps) {
        let title =
            file.map_or_else(|| "Work areas of the programs".to_owned(), |at| sources.title(at));
        write!(page, "\n## {title}\n")?;
        for map in maps.iter().filter(|map| map.file == file) {
            sources.section(&mut page, map, &mut shown)?;
        }
        if let Some(at) = file {
            sources.constants(&mut page, at)?;
        }
    }
    Ok(page)
}

/// The files by their first map; maps without a file come last.
fn files_in_order(maps: &[Map]) -> Vec<Option<usize>> {
    let mut files = Vec::new();
    for map in maps {
        if !files.contains(&map.file) {
            files.push(map.file);
        }
    }
    files.sort_by_key(Option::is_none);
    files
}

impl Sources {
    /// The maps in the order of their declarations.
    fn maps(&self) -> Result<Vec<Map>> {
        let mut maps = Vec::new();
        for (path, file) in &self.programs {
            for item in &file.items {
                let Kind::Value { of, is_static: true, .. } = &item.kind else { continue };
                if let Some(name) = map_name(item) {
                    let map = self.declared(name, of, file);
                    maps.push(map.with_context(|| format!("map `{name}` in {}", path.display()))?);
                }
            }
        }
        ensure!(
            !maps.is_empty(),
            "the programs declare no map: is it still `#[btf_map(name = ..)]`?"
        );
        self.describe(&mut maps)?;
        for map in &mut maps {
            self.describe_by_value(map)?;
        }
        Ok(maps)
    }

    /// The content of a declaration.
    fn declared(&self, name: &str, of: &str, file: &File) -> Result<Map> {
        let (mut head, arguments) = generic(of);
        // `Table<K, V, N>` is an alias of a kind with flags; its arguments come in the same order.
        if let Some(Kind::Alias(is)) = find(file, head).map(|item| &item.kind) {
            head = generic(is).0;
        }
        let argument = |at: usize| {
            arguments.get(at).cloned().with_context(|| format!("{of} has too few arguments"))
        };
        let (kind, [key, value, size]) = match head {
            "Array" => ("array", [None, Some(0), Some(1)]),
            "PerCpuArray" => ("per-CPU array", [None, Some(0), Some(1)]),
            "HashMap" => ("hash", [Some(0), Some(1), Some(2)]),
            "PerCpuHashMap" => ("per-CPU hash", [Some(0), Some(1), Some(2)]),
            "LruHashMap" => ("LRU hash", [Some(0), Some(1), Some(2)]),
            "LpmTrie" => ("LPM trie", [Some(0), Some(1), Some(2)]),
            "HashOfMaps" => ("hash of maps", [Some(0), Some(1), Some(2)]),
            "ProgramArray" => ("program array", [None, None, Some(0)]),
            "RingBuf" => ("ring buffer", [None, Some(0), Some(1)]),
            _ => bail!("{of} is a kind of map that cargo xtask docs does not know"),
        };
        let value = value.map(argument).transpose()?;
        let size = size.map(argument).transpose()?.unwrap_or_default();
        let unit = if kind == "ring buffer" { "bytes" } else { "entries" };
        let size = match self.evaluate(&size, file)? {
            1 => String::new(),
            number => format!(" Room for {} {unit}.", grouped(number)),
        };
        Ok(Map {
            name: name.to_owned(),
            kind,
            size,
            key: key.map(argument).transpose()?,
            value: value.map(|value| inner_map(&value, file)),
            file: None,
            text: Vec::new(),
            of_key: None,
            of_value: None,
        })
    }

    /// The number that an expression stands for: a literal, a shift, or a constant.
    fn evaluate(&self, expression: &str, file: &File) -> Result<u64> {
        if let Ok(number) = expression.replace('_', "").parse() {
            return Ok(number);
        }
        if let Some((of, by)) = expression.split_once(" << ") {
            return Ok(self.evaluate(of, file)? << self.evaluate(by, file)?);
        }
        let name = file.renamed.iter().find(|(other, _)| other == expression);
        let name = name.map_or(expression, |(_, real)| real);
        let all = [file].into_iter().chain(self.common.iter().map(|(_, file)| file));
        let mut items = all.flat_map(|file| &file.items).filter(|item| item.name == name);
        let value = items.find_map(|item| match &item.kind {
            Kind::Value { of, is, is_static: false } if of == "usize" => Some(is),
            _ => None,
        });
        self.evaluate(value.with_context(|| format!("no constant {name} is found"))?, file)
    }

    /// Gives the maps their descriptions from doc comments.
    fn describe(&self, maps: &mut [Map]) -> Result<()> {
        for (at, (path, file)) in self.common.iter().enumerate() {
            for item in &file.items {
                let mut heads: Vec<Head> = Vec::new();
                for paragraph in &item.doc {
                    let text = match head(paragraph) {
                        Some((found, text)) => {
                            heads = vec![found];
                            text
                        }
                        None => paragraph.as_str(),
                    };
                    for name in heads.iter().flat_map(|head| &head.names) {
                        let map = maps.iter_mut().find(|map| map.name == *name);
                        let map = map.with_context(|| {
                            format!(
                                "{}: {} describes `{name}`, which no program declares",
                                path.display(),
                                item.name
                            )
                        })?;
                        map.describe(&heads[0], text, at, item);
                    }
                }
            }
        }
        Ok(())
    }

    /// A map that only the programs know is described by its value's comment.
    fn describe_by_value(&self, map: &mut Map) -> Result<()> {
        if map.text.is_empty() && map.of_value.is_none() && map.of_key.is_none() {
            let value = map.value.clone().unwrap_or_default();
            let mut items = self.programs.iter().filter_map(|(_, file)| find(file, &value));
            let doc = items.find(|item| !item.doc.is_empty()).map(|item| item.doc.clone());
            let name = &map.name;
            map.text = doc.with_context(|| {
                format!(
                    "map `{name}` is described nowhere: begin a paragraph of a doc comment in \
                     overlay-common with \"Map `{name}`, \", or \"Key of map `{name}`: \""
                )
            })?;
        }
        Ok(())
    }

    fn title(&self, at: usize) -> String {
        let (path, file) = &self.common[at];
        // The comment on the folder itself is about all of them.
        if path.ends_with("mod.rs") {
            return "Further maps".to_owned();
        }
        let about = file.about.first().map_or("", String::as_str);
        let sentence = about.split_once(". ").map_or(about, |(first, _)| first);
        let sentence = sentence.split_once(": ").map_or(sentence, |(first, _)| first);
        plain(sentence.trim_end_matches('.'))
    }

    fn section(&self, page: &mut String, map: &Map, shown: &mut Vec<String>) -> Result<()> {
        let Map { name, kind, size, .. } = map;
        write!(page, "\n### `{name}`\n\n")?;
        match map.text.as_slice() {
            [] => write!(page, "{}.", capital(kind))?,
            text => {
                let paragraphs: Vec<_> = text.iter().map(|text| capital(&plain(text))).collect();
                page.push_str(&paragraphs.join("\n\n"));
            }
        }
        writeln!(page, "{size}")?;
        for (side, of, text) in
            [("Key", &map.key, &map.of_key), ("Value", &map.value, &map.of_value)]
        {
            if let Some(of) = of {
                self.type_of(page, side, of, text.as_deref(), shown)?;
            }
        }
        Ok(())
    }

    /// A key or a value, with its fields at their first use.
    fn type_of(
        &self,
        page: &mut String,
        side: &str,
        of: &str,
        text: Option<&str>,
        shown: &mut Vec<String>,
    ) -> Result<()> {
        let text = text.map(|text| format!(": {}", plain(text))).unwrap_or_default();
        let Some(fields) = self.fields(of) else {
            if !text.is_empty() || side == "Key" {
                write!(page, "\n{side} `{of}`{text}\n")?;
            }
            return Ok(());
        };
        if shown.iter().any(|name| name == of) {
            write!(page, "\n{side} [`{of}`](#type-{}){text}\n", of.to_lowercase())?;
            return Ok(());
        }
        shown.push(of.to_owned());
        let id = of.to_lowercase();
        write!(page, "\n<a id=\"type-{id}\"></a>{side} `{of}`{text}\n\n")?;
        page.push_str("| field | type | meaning |\n|---|---|---|\n");
        for Field { doc, name, of } in fields {
            writeln!(page, "| `{name}` | `{}` | {} |", cell(of), cell(&plain(&doc.join(" "))))?;
        }
        // Then the types of its fields.
        for inner in fields.iter().map(|field| element(&field.of)) {
            if !shown.iter().any(|name| name == inner)
                && let Some(Item { doc, kind: Kind::Struct(_), .. }) = self.item(inner)
                && doc.iter().all(|paragraph| head(paragraph).is_none())
                && self.fields(inner).is_some()
            {
                self.type_of(page, "In it", inner, doc.first().map(String::as_str), shown)?;
            }
        }
        Ok(())
    }

    fn item(&self, name: &str) -> Option<&Item> {
        self.common.iter().find_map(|(_, file)| find(file, name))
    }

    /// The fields of a struct of `overlay-common`, if they have descriptions.
    fn fields(&self, name: &str) -> Option<&[Field]> {
        match self.item(name).map(|item| &item.kind) {
            Some(Kind::Struct(fields)) if fields.iter().any(|field| !field.doc.is_empty()) => {
                Some(fields)
            }
            _ => None,
        }
    }

    fn constants(&self, page: &mut String, at: usize) -> Result<()> {
        let (_, file) = &self.common[at];
        let constants: Vec<_> = file
            .items
            .iter()
            .filter_map(|item| match &item.kind {
                Kind::Value { is, is_static: false, .. } if !item.doc.is_empty() => {
                    Some((item, is))
                }
                _ => None,
            })
            .filter(|(item, _)| item.doc.iter().all(|paragraph| head(paragraph).is_none()))
            .collect();
        if !constants.is_empty() {
            page.push_str("\n| constant | value | meaning |\n|---|---|---|\n");
        }
        for (item, is) in constants {
            let doc =
                item.doc.iter().map(|paragraph| plain(paragraph)).collect::<Vec<_>>().join(" ");
            writeln!(page, "| `{}` | `{}` | {} |", item.name, cell(is), cell(&doc))?;
        }
        Ok(())
    }
}

impl Map {
    /// The first sentence of its description, without the kind at the start.
    fn summary(&self) -> String {
        let text = self.text.first().or(self.of_key.as_ref()).or(self.of_value.as_ref());
        let text = plain(text.map_or("", String::as_str));
        let text = text.split_once(": ").map_or(text.as_str(), |(_, behind)| behind);
        capital(text.split_once(". ").map_or(text, |(first, _)| first).trim_end_matches('.'))
    }

    fn describe(&mut self, head: &Head, text: &str, file: usize, item: &Item) {
        match head.side {
            Side::Map => {
                self.file = Some(file);
                self.text.push(text.to_owned());
            }
            Side::Key => {
                self.file = self.file.or(Some(file));
                self.key = Some(item.name.clone());
                self.of_key = joined(self.of_key.take(), text);
            }
            Side::Value => {
                self.file = Some(file);
                self.of_value = joined(self.of_value.take(), text);
            }
        }
    }
}

fn joined(before: Option<String>, text: &str) -> Option<String> {
    match before {
        Some(before) => Some(format!("{before} {text}")),
        None => (!text.is_empty()).then(|| text.to_owned()),
    }
}

/// The subject of a paragraph.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Head {
    side: Side,
    names: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Map,
    Key,
    Value,
}

/// The head of a paragraph that describes maps, and the rest of it.
fn head(paragraph: &str) -> Option<(Head, &str)> {
    let heads = [
        ("Map", Side::Map),
        ("Entries of map", Side::Map),
        ("Key of map", Side::Key),
        ("Value of map", Side::Value),
    ];
    let (side, mut rest) =
        heads.into_iter().find_map(|(words, side)| Some((side, paragraph.strip_prefix(words)?)))?;
    rest = rest.strip_prefix('s').unwrap_or(rest).strip_prefix(' ')?;
    let mut names = Vec::new();
    loop {
        let (name, behind) = rest.strip_prefix('`')?.split_once('`')?;
        names.push(name.to_owned());
        let next = [", and ", " and ", ", "].into_iter().find_map(|word| behind.strip_prefix(word));
        match next {
            Some(next) if next.starts_with('`') => rest = next,
            _ => {
                rest = behind.trim_start_matches([',', ':', '.']).trim_start();
                break;
            }
        }
    }
    Some((Head { side, names }, rest))
}

/// `Table<K, V, { A as usize }>` as its head and its arguments.
fn generic(of: &str) -> (&str, Vec<String>) {
    let Some((head, rest)) = of.split_once('<') else { return (of, Vec::new()) };
    let rest = rest.strip_suffix('>').unwrap_or(rest);
    let mut arguments = vec![String::new()];
    let mut depth = 0;
    for c in rest.chars() {
        match c {
            '<' | '(' | '[' | '{' => depth += 1,
            '>' | ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                arguments.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(last) = arguments.last_mut() {
            last.push(c);
        }
    }
    (
        head,
        arguments
            .into_iter()
            .map(|argument| argument.trim().to_owned())
            .filter(|a| !a.is_empty())
            .collect(),
    )
}

/// The inner map of a map of maps: `Array<Slot, ..>`, also if an alias of the file stands for it.
fn inner_map(value: &str, file: &File) -> String {
    match find(file, value).map(|item| &item.kind) {
        Some(Kind::Alias(is)) => match generic(is) {
            (head, arguments) if !arguments.is_empty() => format!("{head} of {}", arguments[0]),
            _ => value.to_owned(),
        },
        _ => value.to_owned(),
    }
}

/// The type of an array's elements; any other type unchanged.
fn element(of: &str) -> &str {
    of.strip_prefix('[').and_then(|of| of.split_once(';')).map_or(of, |(element, _)| element)
}

fn find<'a>(file: &'a File, name: &str) -> Option<&'a Item> {
    file.items.iter().find(|item| item.name == name)
}

fn map_name(item: &Item) -> Option<&str> {
    item.attributes
        .iter()
        .find_map(|attribute| attribute.strip_prefix("#[btf_map(name = \"")?.strip_suffix("\")]"))
}

/// A text without the links of rustdoc.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, link)) = rest.split_once("[`") {
        let Some((name, behind)) = link.split_once("`]") else { break };
        plain.push_str(before);
        let name = ["crate::maps::", "crate::", "super::", "self::", "fn@"]
            .into_iter()
            .find_map(|prefix| name.strip_prefix(prefix))
            .unwrap_or(name);
        let _ = write!(plain, "`{name}`");
        rest = match behind.strip_prefix('(').and_then(|target| target.split_once(')')) {
            Some((_, behind)) => behind,
            None => behind,
        };
    }
    plain + rest
}

/// A text in a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// A number with commas between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMON: &str = "\
//! Tracked flows.

/// Key of map `flows`: a tuple, in [`crate::Be32`]s.
pub struct FlowKey {
    /// The source.
    pub saddr: Be32,
}

/// Maps `flows` and `new_flows`, LRU hashes: one entry per direction. Written and read by the
/// programs.
pub struct Flow {
    /// Who | what.
    pub last: [Seen; 2],
}

/// When it was seen.
pub struct Seen {
    /// In ns.
    pub at: u64,
}

/// Map `ports`, hash by [`Be16`] of `u32`: ports.
///
/// Map `ports6`, hash: the same of IPv6.
pub type Port = u32;

/// Most entries.
pub const FLOWS: usize = 1 << 18;
";

    const PROGRAMS: &str = "\
type Table<K, V, const ENTRIES: usize> = HashMap<K, V, ENTRIES, NO_PREALLOC>;

#[btf_map(name = \"flows\")]
static FLOWS: LruHashMap<FlowKey, Flow, MOST> = LruHashMap::new();

#[btf_map(name = \"new_flows\")]
static NEW: LruHashMap<FlowKey, Flow, 64> = LruHashMap::new();

#[btf_map(name = \"ports\")]
static PORTS: Table<Be16, Port, 8> = Table::new();

#[btf_map(name = \"ports6\")]
static PORTS6: Table<Be16, Port, 8> = Table::new();

#[btf_map(name = \"work\")]
pub static WORK: PerCpuArray<Work, 1> = PerCpuArray::new();

/// What a program remembers.
pub struct Work {
    /// One.
    pub one: u32,
}

use overlay_common::FLOWS as MOST;
";

    fn sources(common: &str, programs: &str) -> Sources {
        let file = |path: &str, text: &str| vec![(PathBuf::from(path), source::parse(text))];
        Sources { common: file("c/flows.rs", common), programs: file("e/maps.rs", programs) }
    }

    #[test]
    fn a_page_has_each_map_with_its_declaration_and_the_words_of_its_comments() {
        let page = render(&sources(COMMON, PROGRAMS)).unwrap();
        for part in [
            "| [`flows`](#flows) | LRU hash | `FlowKey` | `Flow` | One entry per direction |",
            "## Tracked flows\n",
            "### `flows`\n\nLRU hashes: one entry per direction. Written and read by the programs. Room for 262,144",
            "Key `FlowKey`: a tuple, in `Be32`s.",
            "| `last` | `[Seen; 2]` | Who \\| what. |",
            "In it `Seen`: When it was seen.",
            "### `new_flows`\n\nLRU hashes: one entry per",
            "Key [`FlowKey`](#type-flowkey)",
            "### `ports`\n\nHash by `Be16` of `u32`: ports. Room for 8 entries.",
            "### `ports6`\n\nHash: the same of IPv6. Room",
            "## Work areas of the programs\n\n### `work`\n\nWhat a program remembers.\n",
            "| `FLOWS` | `1 << 18` | Most entries. |",
        ] {
            assert!(page.contains(part), "{part:?} is not in:\n{page}");
        }
    }

    #[test]
    fn a_map_without_a_comment_and_a_comment_without_a_map_are_errors() {
        let added =
            "#[btf_map(name = \"more\")]\nstatic MORE: Table<u32, u32, 1> = Table::new();\n";
        let error = render(&sources(COMMON, &[PROGRAMS, added].concat())).unwrap_err();
        assert!(error.to_string().contains("map `more` is described nowhere"), "{error}");
        let gone = PROGRAMS.replace("ports6", "ports_v6");
        let error = render(&sources(COMMON, &gone)).unwrap_err();
        assert!(error.to_string().contains("Port describes `ports6`, which no"), "{error}");
    }

    #[test]
    fn heads_name_one_map_or_several() {
        let names = |text| head(text).map(|(head, rest)| (head.names.join(" "), rest));
        assert_eq!(names("Map `a`, hash: x"), Some(("a".into(), "hash: x")));
        assert_eq!(names("Maps `a`, `b` and `c`: x"), Some(("a b c".into(), "x")));
        assert_eq!(names("Key of map `a`."), Some(("a".into(), "")));
        assert_eq!(names("Entries of map `a`, an array: x"), Some(("a".into(), "an array: x")));
        assert_eq!(names("Mapped by `a`"), None);
    }
}
