//! Files of clients: `/v1/files`, and files as a part of requests, whose text precedes the conversation in the prompt.
//!
//! [`store`] keeps uploaded files and their text on disk, per API key; [`upload`] receives one; [`routes`] has the endpoints and
//! [`read`] prefills a file ahead of its first question. [`input`] moves the files of a request to the start of its prompt as
//! a [`set`], and [`citations`] finds the quotations of a reply in them. Extraction is that of [`crate::documents`], the layout
//! of the prompt that of [`crate::document_qa`].

pub mod citations;
pub mod input;
pub mod read;
pub mod routes;
pub mod set;
pub mod store;
mod upload;
