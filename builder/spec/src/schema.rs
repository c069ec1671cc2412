//! JSON schemas of the three kinds of file, for editors that complete and check TOML.
//!
//! They come from the same declarations as the decoders, so that the two cannot differ; relations between values
//! (does the bond's member exist?) are for the decoder alone.

use serde_json::Value;

use crate::decode::Decode;
use crate::definition::RawDefinition;
use crate::overlay::RawOverlay;
use crate::site::RawSite;

/// The dialect of the schemas.
const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";

/// Schemas by the kind of file that they describe: `definition`, `overlay`, `site`.
pub fn json_schemas() -> Vec<(&'static str, Value)> {
    let titled = |kind: &'static str, mut schema: Value| {
        schema["$schema"] = DIALECT.into();
        schema["title"] = kind.into();
        (kind, schema)
    };
    vec![
        titled("definition", RawDefinition::schema()),
        titled("overlay", RawOverlay::schema()),
        titled("site", RawSite::schema()),
    ]
}
