//! As much of XML as object stores answer with, read in one pass without a tree.
//!
//! Constraints (H-60): no document type, so no entities but the five and character references;
//! a bounded depth; attributes and name spaces are skipped, names are local. What is not well-formed
//! is an error and never a shorter answer.

use std::borrow::Cow;

/// Deeper answers are refused.
const DEPTH_LIMIT: usize = 16;

/// Why something is not an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum XmlError {
    /// It is not UTF-8.
    #[error("the answer is not UTF-8")]
    Encoding,
    /// It declares a document type, which may define entities.
    #[error("the answer has a document type declaration")]
    DocumentType,
    /// A tag, reference or section does not end, or ends something else.
    #[error("the answer is not well-formed XML")]
    Malformed,
    /// It is nested too deeply.
    #[error("the answer is nested deeper than {DEPTH_LIMIT} elements")]
    TooDeep,
}

/// Calls `leaf` with the names of the open elements and the text of each element that has only text,
/// and with no text at the end of each that has elements in it.
pub(super) fn walk<'a>(
    xml: &'a [u8],
    mut leaf: impl FnMut(&[&'a str], Option<Cow<'a, str>>),
) -> Result<(), XmlError> {
    let text = std::str::from_utf8(xml).map_err(|_not_utf8| XmlError::Encoding)?;
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut open: Vec<&'a str> = Vec::new();
    let mut content: Cow<'a, str> = Cow::Borrowed("");
    let mut has_children = false;
    let mut seen_root = false;
    while let Some(at) = rest.find('<') {
        let (before, markup) = rest.split_at_checked(at).ok_or(XmlError::Malformed)?;
        append(&mut content, decode(before)?);
        if let Some(section) = markup.strip_prefix("<![CDATA[") {
            let (data, after) = section.split_once("]]>").ok_or(XmlError::Malformed)?;
            append(&mut content, Cow::Borrowed(data));
            rest = after;
        } else if let Some(comment) = markup.strip_prefix("<!--") {
            (_, rest) = comment.split_once("-->").ok_or(XmlError::Malformed)?;
        } else if markup.starts_with("<!") {
            return Err(XmlError::DocumentType);
        } else if let Some(instruction) = markup.strip_prefix("<?") {
            (_, rest) = instruction.split_once("?>").ok_or(XmlError::Malformed)?;
        } else if let Some(end) = markup.strip_prefix("</") {
            let (name, after) = end.split_once('>').ok_or(XmlError::Malformed)?;
            if open.last() != Some(&local(name.trim_end())) {
                return Err(XmlError::Malformed);
            }
            let text = std::mem::take(&mut content);
            leaf(&open, (!has_children).then_some(text));
            open.pop();
            has_children = true;
            rest = after;
        } else {
            let (tag, after) = split_tag(markup)?;
            let (name, empty) = tag_name(tag)?;
            if open.is_empty() && seen_root {
                return Err(XmlError::Malformed);
            }
            if open.len() == DEPTH_LIMIT {
                return Err(XmlError::TooDeep);
            }
            seen_root = true;
            open.push(name);
            content = Cow::Borrowed("");
            has_children = false;
            if empty {
                leaf(&open, Some(Cow::Borrowed("")));
                open.pop();
                has_children = true;
            }
            rest = after;
        }
    }
    // Cut off in the middle, or no element at all.
    if !open.is_empty() || !seen_root || !rest.trim().is_empty() {
        return Err(XmlError::Malformed);
    }
    Ok(())
}

/// Splits behind the `>` that ends the tag; one inside a quoted attribute does not.
fn split_tag(markup: &str) -> Result<(&str, &str), XmlError> {
    let mut quote = None;
    for (at, byte) in markup.bytes().enumerate() {
        match (quote, byte) {
            (None, b'>') => {
                let (tag, rest) = markup.split_at_checked(at).ok_or(XmlError::Malformed)?;
                let tag = tag.strip_prefix('<').ok_or(XmlError::Malformed)?;
                return Ok((tag, rest.strip_prefix('>').ok_or(XmlError::Malformed)?));
            }
            (None, b'"' | b'\'') => quote = Some(byte),
            (Some(open), byte) if open == byte => quote = None,
            _ => {}
        }
    }
    Err(XmlError::Malformed)
}

fn tag_name(tag: &str) -> Result<(&str, bool), XmlError> {
    let (tag, empty) = tag
        .strip_suffix('/')
        .map_or((tag, false), |tag| (tag, true));
    let name = tag
        .split_ascii_whitespace()
        .next()
        .ok_or(XmlError::Malformed)?;
    Ok((local(name), empty))
}

fn local(name: &str) -> &str {
    name.rsplit_once(':').map_or(name, |(_, local)| local)
}

fn append<'a>(content: &mut Cow<'a, str>, more: Cow<'a, str>) {
    if content.is_empty() {
        *content = more;
    } else if !more.is_empty() {
        content.to_mut().push_str(&more);
    }
}

fn decode(text: &str) -> Result<Cow<'_, str>, XmlError> {
    if !text.contains('&') {
        return Ok(Cow::Borrowed(text));
    }
    let mut decoded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, reference)) = rest.split_once('&') {
        let (name, after) = reference.split_once(';').ok_or(XmlError::Malformed)?;
        decoded.push_str(before);
        decoded.push(match name {
            "lt" => '<',
            "gt" => '>',
            "amp" => '&',
            "quot" => '"',
            "apos" => '\'',
            number => character(number)?,
        });
        rest = after;
    }
    decoded.push_str(rest);
    Ok(Cow::Owned(decoded))
}

fn character(reference: &str) -> Result<char, XmlError> {
    let number = reference.strip_prefix('#').ok_or(XmlError::Malformed)?;
    let number = match number.strip_prefix('x') {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => number.parse(),
    };
    number
        .ok()
        .and_then(char::from_u32)
        .ok_or(XmlError::Malformed)
}

/// The text of the first element called `name`.
pub(super) fn find(xml: &[u8], name: &str) -> Option<String> {
    let mut found = None;
    // What comes before a fault is still what was said.
    let _well_formed: Result<(), XmlError> = walk(xml, |open, text| {
        if found.is_none()
            && open.last() == Some(&name)
            && let Some(text) = text
        {
            found = Some(text.into_owned());
        }
    });
    found
}

/// Escapes text for an element.
pub(super) fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(['&', '<', '>']) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(
        text.replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(xml: &str) -> Result<Vec<String>, XmlError> {
        let mut found = Vec::new();
        walk(xml.as_bytes(), |open, text| {
            if let Some(text) = text {
                found.push(format!("{}={text}", open.join("/")));
            }
        })?;
        Ok(found)
    }

    #[test]
    fn text_is_read_with_references_sections_and_name_spaces() {
        let xml = "<?xml version=\"1.0\"?>\n<!-- > --><s3:List xmlns:s3='a>b'>\n <Key>a&amp;&#x2F;&#10;b\
                   <![CDATA[<&]]></Key>\n <Empty/><Open a=\"/\"></Open></s3:List>\n";
        assert_eq!(
            leaves(xml).unwrap(),
            ["List/Key=a&/\nb<&", "List/Empty=", "List/Open="]
        );
    }

    #[test]
    fn h60_what_is_not_plain_well_formed_xml_is_refused() {
        let deep = format!("{}{}", "<a>".repeat(20), "</a>".repeat(20));
        for (xml, error) in [
            (
                "<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>",
                XmlError::DocumentType,
            ),
            ("<a>&b;</a>", XmlError::Malformed),
            ("<a>&#xD800;</a>", XmlError::Malformed),
            ("<a><b></a></b>", XmlError::Malformed),
            ("<a><b>text", XmlError::Malformed),
            ("<a></a><b></b>", XmlError::Malformed),
            ("", XmlError::Malformed),
            ("no answer", XmlError::Malformed),
            (deep.as_str(), XmlError::TooDeep),
        ] {
            assert_eq!(leaves(xml), Err(error), "{xml}");
        }
        assert_eq!(walk(b"<a>\xff</a>", |_, _| {}), Err(XmlError::Encoding));
    }

    #[test]
    fn an_answer_cut_anywhere_is_never_a_shorter_one() {
        let xml = "<List><Key>a&lt;b</Key><Key>c</Key></List>";
        for end in 0..xml.len() {
            leaves(xml.get(..end).unwrap()).unwrap_err();
        }
    }

    #[test]
    fn what_is_escaped_reads_back() {
        let text = "a<b>&\"c'";
        assert_eq!(
            find(format!("<a>{}</a>", escape(text)).as_bytes(), "a").unwrap(),
            text
        );
    }
}
